"""States of frozen layers, computed once for a whole table: for all members of a bank, all epochs, and every evaluation.

Layers below the lowest adapted one give the same states whatever is trained above them. They lie in a memory-mapped array in the compute dtype, so that they cost disk and
page cache, not memory.
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
    """

    layer: int
    values: NDArray[np.generic]
    offsets: NDArray[np.int64]
    dtype: torch.dtype
    is_pooled: bool

    def of(self, sequences: NDArray[np.int64]) -> torch.Tensor:
        """States of some sequences, end to end.

        Args:
            sequences: (B,) their numbers in the table.

        Returns:
            (their lengths together, D), or (B, D) for pooled states.
        """
        return torch.from_numpy(self.values[places_of(self.offsets, sequences)]).view(self.dtype)


def with_states(batch: PackedBatch, states: FrozenStates | None) -> PackedBatch:
    """The batch with the states of its sequences, and zeros for its tail; itself where none are known."""
    if states is None:
        return batch
    hidden = states.of(batch.sequences)
    if not states.is_pooled and batch.tail:
        hidden = torch.cat([hidden, hidden.new_zeros(batch.tail, hidden.shape[1])])
    return replace(batch, hidden=hidden, hidden_layer=states.layer)
