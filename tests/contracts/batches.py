"""Ragged batches for parity tests, in our form and in the reference library's."""

from collections.abc import Sequence

import numpy as np
import torch

from lorabel.data.packing import pack
from lorabel.data.types import PackedBatch, TokenTable


def sequences(lengths: list[int], seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(5, 60, size=length).tolist() for length in lengths]


def packed(rows: list[list[int]], first_position: int, labels: list[int] | None = None, places: Sequence[int] | None = None) -> PackedBatch:
    offsets = np.cumsum([0, *map(len, rows)])
    table = TokenTable(np.array([token for row in rows for token in row], dtype=np.int32), offsets, 0, 512)
    return pack(table, np.arange(len(rows)), None if labels is None else np.array(labels), first_position, None if places is None else np.array(places))


def padded(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}
