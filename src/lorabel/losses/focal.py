"""Focal loss: rows that are already answered with certainty count less.

Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5, with the softmax in place of the sigmoid: -α (1 - p)^γ log p of the true class's probability p;
α is the class weight. With γ = 0 it is cross-entropy.
Several labels per text take the paper's own form, with a sigmoid for each label.
Departure: with label smoothing, which the paper has not, every class's term is focused by its own probability and weighted by its share of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorabel.config import LossConfig
from lorabel.losses.base import row_weights, weight_sum, weights_like
from lorabel.registry import LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("focal")
class Focal:
    """Focal loss over classes.

    Args:
        gamma: γ, at least 0; the paper finds 2 best.
        label_smoothing: ε in [0, 1).
        class_weights: One positive weight per class, or None.
    """

    def __init__(self, gamma: float = 2.0, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        self._gamma = gamma
        self._smoothing = label_smoothing
        self._weights = None if class_weights is None else tuple(class_weights)

    @classmethod
    def from_settings(cls, settings: LossConfig, class_weights: Sequence[float] | None) -> Focal:
        """See `Loss.from_settings`."""
        return cls(settings.focal_gamma, settings.label_smoothing, class_weights)

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted loss of each row (B,); see `Loss.rows`."""
        import torch

        if labels.dim() == 2:
            return self._label_rows(logits, labels)
        logs = logits.log_softmax(dim=1)  # (B, C)
        # 1 - p without cancellation; kept off 0, where the slope of a power below 1 is infinite.
        others = (-torch.expm1(logs)).clamp(min=torch.finfo(logs.dtype).eps)
        target = torch.full_like(logs, self._smoothing / logits.shape[1])
        target = target.scatter_add(1, labels[:, None], torch.full_like(logs[:, :1], 1 - self._smoothing))
        if self._weights is not None:
            target = target * weights_like(self._weights, logits)
        return -(target * others**self._gamma * logs).sum(dim=1)

    def _label_rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The same over labels: each one's presence and absence are the two classes."""
        from torch.nn import functional

        target = labels.to(logits.dtype) * (1 - self._smoothing) + self._smoothing / 2  # (B, C)
        present, absent = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        weight = 1.0 if self._weights is None else weights_like(self._weights, logits)
        # sigmoid(-z) = exp(logsigmoid(-z)) is 1 - p without cancellation, and never 0 where γ's slope would be infinite.
        terms = weight * target * (self._gamma * absent).exp() * present + (1 - target) * (self._gamma * present).exp() * absent
        return -terms.mean(dim=1)

    def normaliser(self, labels: Tensor) -> float:
        """Rows, or the sum of their true classes' weights; the focus does not enter, as in the paper."""
        return weight_sum(labels, self._weights)

    def row_weights(self, labels: Tensor, like: Tensor) -> Tensor | None:
        """The weights of the rows' true classes; see `Loss.row_weights`."""
        return row_weights(labels, self._weights, like)
