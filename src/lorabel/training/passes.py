"""One forward and backward pass of a share: rows of some members through the bank, their losses, and the gradients of their values.

The loop asks for the losses and gradients of shares; how they are computed is decided here and in `graphs.py`, which replays what this file computes where a GPU would
otherwise wait for the host to launch one small kernel after another. Both run the same function, `losses_and_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorabel.data.types import PackedBatch, to_device
from lorabel.models.bank import Bank
from lorabel.models.encoder import MaskSource
from lorabel.models.joined import join
from lorabel.training.objective import Objectives
from lorabel.training.randomness import StepMasks
from lorabel.training.state import MemberPlan
from lorabel.training.updates import ArenaUpdater, Updater

_PACKED = "packed factors"


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


class Passes:
    """Runs shares of one bank, one kernel after the other.

    Args:
        bank: All members.
        updater: Theirs.
    """

    def __init__(self, bank: Bank, updater: Updater) -> None:
        self.bank, self.updater = bank, updater
        self._joined, self._arena = None, None
        if launches_cost(bank.encoder.device) and isinstance(updater, ArenaUpdater):
            self._arena = updater.arena
            self._joined = join(bank.methods, bank.encoder, bank.head.pooling, bank.tensors, updater.arena.starts, bank.constants)

    def begin(self, first: int, last: int) -> tuple[Bank, dict[str, Tensor]]:
        """Some members, and what to take gradients of.

        Args:
            first: First member.
            last: One after the last.
        """
        leaves = self.updater.leaves(first, last)
        if self._joined is None or self._arena is None:
            return self.bank.select(first, last, leaves), leaves
        packed = self._joined.pack(self._arena.values, first, last)
        members = replace(self.bank.select(first, last, leaves), joined=self._joined.products(packed))
        return members, {**{name: leaf for name, leaf in leaves.items() if name.startswith("head.")}, _PACKED: packed}

    def run(self, share: Share) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Losses and gradients of one share.

        Args:
            share: The rows.

        Returns:
            (n,) the members' losses, and gradients for `add`.
        """
        device = self.bank.encoder.device
        batch = share.batch.to(device)
        factors = to_device(torch.tensor([share.normalisers, share.scales], dtype=torch.promote_types(self.bank.encoder.dtype, torch.float32)), device)
        objectives = Objectives(share.plans, share.steps, batch)
        members, leaves = self.begin(share.first, share.last)
        return losses_and_gradients(members, leaves, batch, StepMasks(batch, share.seeds, share.steps), objectives, factors)

    def add(self, first: int, last: int, grads: Sequence[Tensor | None]) -> None:
        """Add gradients to those gathered so far.

        Args:
            first: First member.
            last: One after the last.
            grads: As `run` gave them.
        """
        if self._joined is not None and self._arena is not None:
            *grads, packed = grads
            assert packed is not None
            self._joined.add_gradients(self._arena.grads, packed, first, last)
            grads = [None] * (len(self._arena.tensors) - len(grads)) + grads
        self.updater.add_grads(first, last, grads)


def launches_cost(device: torch.device) -> bool:
    """Whether starting an operation takes longer than a small one itself; on a CPU the matrices of a product are made in less time than it takes to gather them all."""
    return device.type == "cuda"


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
        See `Passes.run`.
    """
    assert batch.labels is not None
    between: Callable[[Tensor], Tensor] | None = objectives.between
    losses = torch.stack(objectives.losses(bank.logits(batch, masks, between), batch.labels)) / factors[0]
    return losses.detach(), torch.autograd.grad((losses * factors[1]).sum(), list(leaves.values()), allow_unused=True)
