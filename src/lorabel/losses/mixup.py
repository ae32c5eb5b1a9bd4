"""Mix-up of hidden states: a row's pooled state is mixed with another row's, and so is its loss.

Sources: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1 and section 2: x = λ x + (1 - λ) x', y = λ y + (1 - λ) y', λ ~ Beta(α, α). Guo, Mao and Zhang
2019, "Augmenting Data with Mixup for Sentence Classification: An Empirical Study", senMixup: what is mixed is the sentence's state rather than its words.
Departures:
- The loss of each of the two labels is mixed instead of the labels, as in the paper's published code; for cross-entropy, which is linear in the label, that is the same.
- Rows are mixed in pairs of neighbours in the step, each with a λ of its own, where the papers mix a batch with a permutation of it. Neighbours are random partners as the order of
  rows is random (of about one length where batches are grouped by length), and pairs stay together however a step is cut. The last row of an odd number stays as it is.
- The state is mixed before the head, a frozen pooler and all; senMixup mixes before the last layer, which is the same for a linear head.
- With class weights the two losses are weighted, each by its own class; what the step is divided by stays the sum of the weights of the rows' own classes.
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


@REGULARISERS.register("mixup")
class MixUp:
    """Pairs of rows, each mixed with the other.

    Args:
        alpha: α of the Beta distribution, above 0: small ones leave most rows almost as they are, 1 draws all shares alike.
    """

    setting = "loss.mixup_alpha"
    passes = 1
    neighbours = 2

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    @classmethod
    def from_settings(cls, settings: LossConfig) -> MixUp | None:
        """See `Regulariser.from_settings`."""
        return cls(settings.mixup_alpha) if settings.mixup_alpha > 0 else None

    def mix(self, pooled: Tensor, rows: StepRows) -> Tensor:
        """Pooled states, each mixed with its partner's (B, D), in float32 or wider; see `Regulariser.mix`."""
        import torch

        wide = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
        partners, shares = self._pairs(rows, wide)
        shares = shares[:, None]
        return shares * wide + (1 - shares) * wide.index_select(0, partners)

    def states(self, pooled: Tensor, labels: Tensor, rows: StepRows) -> None:
        """States cost nothing by themselves; see `Regulariser.states`."""

    def rows(self, loss: RowLoss, logits: Tensor, labels: Tensor, rows: StepRows) -> Tensor:
        """The losses of a row's own label and of its partner's, mixed as the states were (B,); see `Regulariser.rows`."""
        partners, shares = self._pairs(rows, logits)
        return shares * loss(logits, labels) + (1 - shares) * loss(logits, labels.index_select(0, partners))

    def _pairs(self, rows: StepRows, like: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's partner (B,) and its own share λ (B,), on the device and in the dtype of `like`; a row takes one λ through all its passes."""
        import torch

        partners = rows.find(rows.places ^ 1, rows.passes)
        # Draws come one after the other, so the share of a place does not depend on how many come after it.
        drawn = rows.generator("mixup").beta(self._alpha, self._alpha, size=int(rows.places.max(initial=-1)) + 1)
        shares = np.where(partners == np.arange(len(partners)), 1.0, drawn[rows.places])
        return torch.from_numpy(partners).to(like.device), torch.from_numpy(shares).to(like.device, like.dtype)
