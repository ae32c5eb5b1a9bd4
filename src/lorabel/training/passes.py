"""One forward and backward pass of a share: rows of some members through the bank, their losses, and the gradients of their values.

The loop asks for the losses and gradients of shares; how they are computed is decided here and in `graphs.py`, which replays what this file computes where a GPU would
otherwise wait for the host to launch one small kernel after another. Both run the same function, `losses_and_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabel.data.types import PackedBatch, to_device
from lorabel.models.bank import Bank
from lorabel.models.encoder import MaskSource
from lorabel.training.objective import Objectives
from lorabel.training.randomness import StepMasks
from lorabel.training.state import MemberPlan


@dataclass(frozen=True)
class Share:
    """What goes through together: rows of the members from `first` to before `last`, of whom some may have none.

    Attributes:
        first: First member.
        last: One after the last member.
        plans: Of those members.
        steps: Each one's optimiser step, from 0.
        batch: Their rows, on the host.
        members: The members that have rows, ascending (n).
        normalisers: What the sum of each one's losses is divided by (n).
        scales: What each one's loss is multiplied by before the backward pass (n).
    """

    first: int
    last: int
    plans: Sequence[MemberPlan]
    steps: Sequence[int]
    batch: PackedBatch
    members: Sequence[int]
    normalisers: Sequence[float]
    scales: Sequence[float]

    @property
    def seeds(self) -> list[int]:
        """Of each member."""
        return [plan.seed for plan in self.plans]


def run_share(bank: Bank, leaves: Mapping[str, Tensor], share: Share) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Losses and gradients of one share.

    Args:
        bank: All members.
        leaves: Values of the share's members, to take gradients of.
        share: The rows.

    Returns:
        (n,) the members' losses, and one gradient per leaf; None where the loss does not reach it.
    """
    batch = share.batch.to(bank.encoder.device)
    factors = to_device(torch.tensor([share.normalisers, share.scales], dtype=torch.promote_types(bank.encoder.dtype, torch.float32)), bank.encoder.device)
    objectives = Objectives(share.plans, share.steps, batch)
    masks = StepMasks(batch, share.seeds, share.steps)
    return losses_and_gradients(bank.select(share.first, share.last, leaves), leaves, batch, masks, objectives, factors)


def losses_and_gradients(
    bank: Bank, leaves: Mapping[str, Tensor], batch: PackedBatch, masks: MaskSource, objectives: Objectives, factors: Tensor
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The work itself, all of it on the device.

    Args:
        bank: The members.
        leaves: Their values.
        batch: Their rows.
        masks: Dropout factors.
        objectives: What is made of states and scores.
        factors: (2, n) normalisers and loss scales.

    Returns:
        See `run_share`.
    """
    assert batch.labels is not None
    between: Callable[[Tensor], Tensor] | None = objectives.between
    losses = torch.stack(objectives.losses(bank.logits(batch, masks, between), batch.labels)) / factors[0]
    return losses.detach(), torch.autograd.grad((losses * factors[1]).sum(), list(leaves.values()), allow_unused=True)
