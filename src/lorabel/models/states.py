"""States of frozen layers, computed once for a whole table: for all members of a bank, all epochs, and every evaluation.

Layers below the lowest adapted one give the same states whatever is trained above them, and so do the frozen weights of the lowest adapted layer that read those states. They lie
in memory-mapped arrays in the compute dtype, so that they cost disk and page cache, not memory.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lorabel.data.types import PackedBatch, places_of

# NumPy has no bfloat16: its bits are kept as integers of that size.
STORED: dict[torch.dtype, str] = {torch.bfloat16: "uint16", torch.float16: "float16", torch.float32: "float32", torch.float64: "float64"}


@dataclass(frozen=True)
class FrozenStates:
    """The states of one table.

    Attributes:
        layer: The first layer still to be computed; the number of layers where the states are pooled.
        values: (sum of lengths, D), or (N, D) for pooled states; see `STORED`.
        offsets: (N + 1,) rows of `values` of each sequence; windows of long texts are sequences of their own.
        dtype: Of the states.
        is_pooled: One row per sequence instead of one per token.
        products: (sum of lengths, 3 · D), the queries, keys and values that the frozen weights of `layer` make of the states, or None.
    """

    layer: int
    values: NDArray[np.generic]
    offsets: NDArray[np.int64]
    dtype: torch.dtype
    is_pooled: bool
    products: NDArray[np.generic] | None = None

    def of(self, sequences: NDArray[np.int64], tail: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States of some sequences, end to end, and what the next layer's frozen weights make of them.

        Args:
            sequences: (B,) their numbers in the table.
            tail: Rows of zeros after the last token.

        Returns:
            (their lengths together + tail, D), or (B, D) for pooled states; and (their lengths together + tail, 3 · D), or None.
        """
        places = places_of(self.offsets, sequences)
        rows = len(places) + (0 if self.is_pooled else tail)
        return self._taken(self.values, places, rows), None if self.products is None else self._taken(self.products, places, rows)

    def _taken(self, values: NDArray[np.generic], places: NDArray[np.int64], rows: int) -> torch.Tensor:
        taken = np.empty((rows, values.shape[1]), dtype=values.dtype)
        np.take(values, places, axis=0, out=taken[: len(places)], mode="clip")
        taken[len(places) :] = 0
        return torch.from_numpy(taken).view(self.dtype)


def with_states(batch: PackedBatch, states: FrozenStates | None) -> PackedBatch:
    """The batch with the states of its sequences, and zeros for its tail; itself where none are known."""
    if states is None:
        return batch
    hidden, products = states.of(batch.sequences, batch.tail)
    return replace(batch, hidden=hidden, hidden_layer=states.layer, hidden_products=products)
