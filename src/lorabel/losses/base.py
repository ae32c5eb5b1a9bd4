"""What a training loss provides: a loss per row, and the normaliser that turns their sum into the step's mean.

The two are apart so that micro-batches add up to exactly the loss of the whole step, class weights included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Loss(Protocol):
    """A per-row loss."""

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row.

        Args:
            logits: (B, C).
            labels: (B,) class ids.

        Returns:
            (B,), weighted where classes have weights.
        """

    def normaliser(self, labels: Tensor) -> float:
        """What the sum over all rows of a step is divided by.

        Args:
            labels: (N,) class ids of every row of the step.
        """
