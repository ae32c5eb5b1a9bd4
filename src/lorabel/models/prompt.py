"""Trained embeddings inside packed sequences: the run is laid out anew with P more tokens in each sequence."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lorabel.data.packing import round_up
from lorabel.data.types import PackedBatch, to_device
from lorabel.slots import Prompt


def with_prompt(batch: PackedBatch, prompt: Prompt, first_position: int) -> tuple[PackedBatch, Tensor]:
    """The batch with every sequence P tokens longer.

    Args:
        batch: B sequences, T tokens.
        prompt: Of its members.
        first_position: Position id of a sequence's first token, which the prompt takes part in counting.

    Returns:
        The longer batch, whose `input_ids` say nothing at the prompt's places, and (T',) where each of its rows comes from: rows of the old run, then the K · P prompt rows.
    """
    size = prompt.rows.shape[1]
    lengths = np.array(batch.lengths, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if len(lengths) else lengths
    owner = np.repeat(np.arange(len(batch.member_sequences)), batch.member_sequences)
    ahead = 1 if prompt.follows_first else 0
    parts = []
    for start, length, member in zip(starts, lengths, owner, strict=True):
        rows = np.arange(start, start + length)
        trained = len(batch.input_ids) + member * size + np.arange(size)
        parts.append(np.concatenate([rows[:ahead], trained, rows[ahead:]]))
    longer = lengths + size
    cu_seqlens = np.concatenate([[0], np.cumsum(longer)]).astype(np.int64)
    within = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], longer)
    tail = round_up(int(cu_seqlens[-1])) - int(cu_seqlens[-1])
    index = np.pad(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64), (0, tail))
    device = batch.input_ids.device
    longer_batch = replace(
        batch,
        input_ids=batch.input_ids.new_zeros(len(index)),
        position_ids=to_device(torch.from_numpy(np.pad(within + first_position, (0, tail), constant_values=first_position)), device),
        cu_seqlens=to_device(torch.from_numpy(cu_seqlens), device),
        lengths=tuple(longer.tolist()),
    )
    return longer_batch, to_device(torch.from_numpy(index), device)
