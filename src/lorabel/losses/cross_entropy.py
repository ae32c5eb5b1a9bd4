"""Cross-entropy with label smoothing and class weights, over classes or, in a multi-label task, over each label.

Source: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7: the target is (1 - ε) on the true class plus ε / C on every class.
Departure: none; with weights, rows are averaged by the weight of their true class, as the library's `cross_entropy` does. Of several labels each is a choice between two
classes, so ε / 2 goes to the label's presence and absence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorabel.config import LossConfig
from lorabel.losses.base import row_weights, weight_sum, weights_like
from lorabel.registry import LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("cross_entropy")
class CrossEntropy:
    """Cross-entropy over classes.

    Args:
        label_smoothing: ε in [0, 1).
        class_weights: One positive weight per class, or None.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        self._smoothing = label_smoothing
        self._weights = None if class_weights is None else tuple(class_weights)

    @classmethod
    def from_settings(cls, settings: LossConfig, class_weights: Sequence[float] | None) -> CrossEntropy:
        """See `Loss.from_settings`."""
        return cls(settings.label_smoothing, class_weights)

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted loss of each row (B,); see `Loss.rows`."""
        from torch.nn import functional

        weight = None if self._weights is None else weights_like(self._weights, logits)
        if labels.dim() == 2:
            target = labels.to(logits.dtype) * (1 - self._smoothing) + self._smoothing / 2  # (B, C)
            return functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none").mean(dim=1)
        return functional.cross_entropy(logits, labels, weight=weight, label_smoothing=self._smoothing, reduction="none")

    def normaliser(self, labels: Tensor) -> float:
        """Rows, or the sum of their true classes' weights."""
        return weight_sum(labels, self._weights)

    def row_weights(self, labels: Tensor, like: Tensor) -> Tensor | None:
        """The weights of the rows' true classes; see `Loss.row_weights`."""
        return row_weights(labels, self._weights, like)
