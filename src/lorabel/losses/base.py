"""What a training loss provides: a loss per row, and the normaliser that turns their sum into the step's mean.

The two are apart so that micro-batches add up to exactly the loss of the whole step, class weights included. In a multi-label task every label is a question of its own,
answered by a sigmoid; a row's loss is the mean over its labels, and a class's weight multiplies the terms of the rows that have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from lorabel.config import LossConfig

if TYPE_CHECKING:
    from torch import Tensor


class Loss(Protocol):
    """A per-row loss."""

    @classmethod
    def from_settings(cls, settings: LossConfig, class_weights: Sequence[float] | None) -> Loss:
        """Make the loss; each reads the settings that concern it.

        Args:
            settings: The section `loss`.
            class_weights: One positive weight per class, settled, or None.
        """

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row.

        Args:
            logits: (B, C).
            labels: (B,) class ids; in a multi-label task (B, C) indicators.

        Returns:
            (B,), weighted where classes have weights.
        """

    def normaliser(self, labels: Tensor) -> float:
        """What the sum over all rows of a step is divided by.

        Args:
            labels: (N,) class ids or (N, C) indicators of every row of the step.
        """


def weight_sum(labels: Tensor, class_weights: Sequence[float] | None) -> float:
    """Rows, or the sum of their true classes' weights; rows too where they have several labels, whose weights do not make a row count more.

    Args:
        labels: (N,) class ids or (N, C) indicators.
        class_weights: One weight per class, or None.
    """
    if class_weights is None or labels.dim() == 2:
        return float(len(labels))
    return float(sum(class_weights[label] for label in labels.tolist()))
