"""Embeddings of texts by the frozen encoder alone: the mean of its last states over each text's tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from lorabel.data.packing import pack
from lorabel.data.types import TokenTable
from lorabel.inference.predictor import length_batches
from lorabel.models.crew import crew_for_rows
from lorabel.models.encoder import PackedEncoder
from lorabel.models.windows import pool_windows


def mean_embeddings(table: TokenTable, encoder: PackedEncoder, on_rows: Callable[[int], None] | None = None) -> NDArray[np.float64]:
    """Embed tokenised texts.

    Args:
        table: N rows; of a text in windows, their embeddings are pooled as the table says.
        encoder: The encoder, as it was pretrained.
        on_rows: Called after each batch with the number of rows done.

    Returns:
        (N, D) in the table's order.
    """
    out = np.zeros((len(table), encoder.shape.hidden_size))

    def run(rows: NDArray[np.int64]) -> int:
        with torch.inference_mode():
            batch = pack(table, rows, None, encoder.shape.first_position).to(encoder.device)
            found = encoder.frozen_states(batch, encoder.shape.num_layers, "mean")
            found = found if batch.windows is None else pool_windows(found, batch.windows)
            out[batch.rows] = found.cpu().double().numpy()
        return len(rows)

    batches, done = list(length_batches(table.lengths)), 0
    with crew_for_rows(len(batches), encoder.device, 1) as crew:
        for count in crew.map(run, batches):
            done += count
            if on_rows is not None:
                on_rows(done)
    return out
