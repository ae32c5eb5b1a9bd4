"""What the members of one share minimise: their losses, and what their regularisers do to rows, states and losses on the way.

The loop asks three things: the rows of a member once for each pass, what happens to pooled states between encoder and head, and each member's loss. A member without
regularisers gets its rows, states and losses back untouched. What states cost by themselves is known once they went by, so `losses` is asked after them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabel.data.packing import MemberRows
from lorabel.data.types import PackedBatch
from lorabel.losses.base import StepRows
from lorabel.training.randomness import PLACES_PER_PASS, numpy_generator
from lorabel.training.state import MemberPlan


def in_passes(rows: MemberRows, passes: int) -> MemberRows:
    """A member's rows once for each pass; those of the first stand where they would stand alone, so their dropout masks are the same.

    Args:
        rows: B rows.
        passes: How often each goes through.

    Returns:
        B × passes rows.
    """
    if passes == 1:
        return rows
    order = np.tile(np.arange(len(rows.rows)), passes)
    places = np.add.outer(np.arange(passes) * PLACES_PER_PASS, rows.places).ravel()
    return MemberRows(rows.table, rows.rows[order], None if rows.labels is None else rows.labels[order], places)


class Objectives:
    """The objectives of the members of one share.

    Args:
        plans: Of the share's members.
        steps: Each member's optimiser step, from 0.
        batch: Their rows, in passes.
    """

    def __init__(self, plans: Sequence[MemberPlan], steps: Sequence[int], batch: PackedBatch) -> None:
        self._plans = plans
        self._labels = batch.labels
        self._counts = list(batch.member_rows)
        parts = np.split(batch.row_places, np.cumsum(self._counts)[:-1])
        self._rows = [_step_rows(plan.seed, step, part) for plan, step, part in zip(plans, steps, parts, strict=True)]
        self._of_states: list[list[Tensor]] = [[] for _ in plans]

    @property
    def between(self) -> Callable[[Tensor], Tensor] | None:
        """What happens to pooled states (B, D) before the head; None where no member has a regulariser."""
        return self._mixed if any(plan.regularisers for plan in self._plans) else None

    def _mixed(self, pooled: Tensor) -> Tensor:
        assert self._labels is not None, "regularisers act in training, where rows have labels"
        mixed, labels = [], torch.split(self._labels, self._counts)
        for k, (plan, part, rows) in enumerate(zip(self._plans, torch.split(pooled, self._counts), self._rows, strict=True)):
            costs = [regulariser.states(part, labels[k], rows) for regulariser in plan.regularisers]
            self._of_states[k] = [_weighted(cost, plan.loss.row_weights(labels[k], cost)) for cost in costs if cost is not None]
            for regulariser in plan.regularisers:
                part = regulariser.mix(part, rows)
            mixed.append(part)
        # States that are mixed come back in float32 or wider, which the others take on: the head computes in it anyway.
        return torch.cat(mixed)

    def losses(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        """The summed loss of the rows of each member that has some, in the members' order.

        Args:
            logits: (B, C).
            labels: (B,) class ids or (B, C) indicators.
        """
        losses = []
        parts = zip(self._plans, self._rows, torch.split(logits, self._counts), torch.split(labels, self._counts), self._of_states, strict=True)
        for plan, rows, scores, targets, of_states in parts:
            if not len(rows.places):
                continue
            loss = plan.loss.rows
            for regulariser in plan.regularisers:
                loss = partial(regulariser.rows, loss, rows=rows)
            losses.append(torch.stack([cost.sum() for cost in (loss(scores, targets), *of_states)]).sum())
        return losses


def _weighted(costs: Tensor, weights: Tensor | None) -> Tensor:
    """Costs of rows (B,) with the weights that the rows have in the normaliser, which what they are added to is divided by."""
    return costs if weights is None else weights * costs


def _step_rows(seed: int, step: int, keys: NDArray[np.int64]) -> StepRows:
    passes, places = np.divmod(keys, PLACES_PER_PASS)
    return StepRows(places, passes, lambda purpose: numpy_generator(seed, purpose, step))
