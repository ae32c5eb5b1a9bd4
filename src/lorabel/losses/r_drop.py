"""R-Drop: a row goes through twice with dropout masks of its own, and the two answers are drawn towards each other.

Source: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", equations 2 to 4: beside the two negative log-likelihoods stands α times half the sum of the two
Kullback-Leibler divergences KL(p1 ‖ p2) and KL(p2 ‖ p1); gradients flow through both answers.
Departures:
- The paper adds the two log-likelihoods (equation 3), here as in its published code they are averaged, so that the loss and the learning rate mean what they do without R-Drop:
  (L1 + L2) / 2 + α (KL(p1 ‖ p2) + KL(p2 ‖ p1)) / 2. The paper's formula with 2α is twice this one.
- L is whatever loss is set, smoothing, focus and class weights included; the divergence has no class weight, and is divided by the step's normaliser as the losses are.
- Of several labels each is a choice between two: the divergences are those of the Bernoulli distributions, averaged over the labels as the loss is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabel.config import LossConfig
from lorabel.losses.base import StepRows
from lorabel.registry import REGULARISERS

if TYPE_CHECKING:
    from torch import Tensor

    from lorabel.losses.base import RowLoss


@REGULARISERS.register("r_drop")
class RDrop:
    """Two passes and the divergence between them.

    Args:
        alpha: α, above 0.
    """

    setting = "loss.r_drop_alpha"
    passes = 2
    neighbours = 1

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    @classmethod
    def from_settings(cls, settings: LossConfig) -> RDrop | None:
        """See `Regulariser.from_settings`."""
        return cls(settings.r_drop_alpha) if settings.r_drop_alpha > 0 else None

    def mix(self, pooled: Tensor, rows: StepRows) -> Tensor:
        """States stay as they are; see `Regulariser.mix`."""
        return pooled

    def states(self, pooled: Tensor, labels: Tensor, rows: StepRows) -> None:
        """States cost nothing by themselves; see `Regulariser.states`."""

    def rows(self, loss: RowLoss, logits: Tensor, labels: Tensor, rows: StepRows) -> Tensor:
        """Half the loss of each pass and half the row's divergence (B,); see `Regulariser.rows`."""
        import torch

        other = torch.from_numpy(rows.find(rows.places, 1 - rows.passes)).to(logits.device)
        return loss(logits, labels) / 2 + self._alpha / 4 * _both_divergences(logits, logits.index_select(0, other), labels.dim() == 2)


def _both_divergences(logits: Tensor, others: Tensor, is_multi_label: bool) -> Tensor:
    """KL(p ‖ q) + KL(q ‖ p) of each row (B,): the sum of (p - q)(log p - log q), in which what makes logits a distribution cancels."""
    if is_multi_label:
        return ((logits.sigmoid() - others.sigmoid()) * (logits - others)).mean(dim=1)
    return ((logits.softmax(dim=1) - others.softmax(dim=1)) * (logits - others)).sum(dim=1)
