"""Supervised contrastive loss: pooled states of rows with the same label are drawn together, others apart.

Sources: Khosla et al. 2020, "Supervised Contrastive Learning", equation 2: of row i, the mean over the other rows p of its class of
-log(exp(z_i · z_p / τ) / Σ_{a ≠ i} exp(z_i · z_a / τ)), z of length 1. Gunel et al. 2021, "Supervised Contrastive Learning for Pre-trained Language Model Fine-tuning", equation 1:
beside the cross-entropy, and with few rows above all, because every pair of rows says something.
Departures:
- The loss is L + α S rather than (1 - λ) L + λ S, so that the learning rate of the rest means what it does without it.
- Rows are contrasted in groups of 32 neighbours in the step, in place of the whole step: they stay together however it is cut, and its rows are in random order (of about one length
  where batches are grouped by length). A row without another of its class in its group costs nothing.
- Of several labels, a pair counts by the share of its labels that both have (their Jaccard index); with one label that is 1 or 0.
- With class weights a row's term has the weight of its own class, as its loss has, so that both are averages over the same rows.
- What is contrasted is the state that is pooled before the head, a frozen pooler and mix-up; passes of a row are rows of its class, and its loss is their mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lorabel.config import LossConfig
from lorabel.losses.base import StepRows
from lorabel.registry import REGULARISERS

if TYPE_CHECKING:
    from torch import Tensor

    from lorabel.losses.base import RowLoss

# In the exponent: no row is contrasted with itself or with another group.
_NEVER = -1e4


@REGULARISERS.register("contrastive")
class Contrastive:
    """Rows of a class together, classes apart.

    Args:
        alpha: Weight beside the loss, above 0.
        temperature: τ, above 0: the smaller, the more only the nearest rows matter.
    """

    setting = "loss.contrastive_alpha"
    passes = 1
    neighbours = 32

    def __init__(self, alpha: float, temperature: float) -> None:
        self._alpha, self._temperature = alpha, temperature

    @classmethod
    def from_settings(cls, settings: LossConfig) -> Contrastive | None:
        """See `Regulariser.from_settings`."""
        return cls(settings.contrastive_alpha, settings.contrastive_temperature) if settings.contrastive_alpha else None

    def mix(self, pooled: Tensor, rows: StepRows) -> Tensor:
        """States stay as they are; see `Regulariser.mix`."""
        return pooled

    def states(self, pooled: Tensor, labels: Tensor, rows: StepRows) -> Tensor:
        """α times the contrastive loss of each row (B,), in float32 or wider; see `Regulariser.states`."""
        import torch
        from torch.nn import functional

        wide = functional.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=1)
        group = torch.from_numpy(rows.places // self.neighbours).to(wide.device)
        others = (group[:, None] == group) & ~torch.eye(len(wide), dtype=torch.bool, device=wide.device)
        logs = (wide @ wide.T / self._temperature).masked_fill(~others, _NEVER).log_softmax(dim=1)
        alike = _alike(labels, wide) * others
        share = alike / alike.sum(dim=1, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
        return -self._alpha / _passes(rows) * (share * logs).sum(dim=1)

    def rows(self, loss: RowLoss, logits: Tensor, labels: Tensor, rows: StepRows) -> Tensor:
        """The loss as it is (B,); see `Regulariser.rows`."""
        return loss(logits, labels)


def _alike(labels: Tensor, like: Tensor) -> Tensor:
    """How much of their labels two rows share (B, B), from 0 to 1, in the dtype of `like`."""
    if labels.dim() == 1:
        return (labels[:, None] == labels).to(like.dtype)
    given = labels.to(like.dtype)
    both, counts = given @ given.T, given.sum(dim=1)
    return both / (counts[:, None] + counts - both).clamp(min=1)


def _passes(rows: StepRows) -> int:
    """How often each row goes through."""
    return int(np.max(rows.passes, initial=0)) + 1
