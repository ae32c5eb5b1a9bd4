"""THE training loop: read this first.

One optimiser step is: every member of the bank takes its next rows, they run through the bank in shares, gradients are added up, clipped, and every member is updated.
Everything else hangs on hooks that the workflow provides: how to score the validation split, how to save, whether to stop. The loop knows no method, no file format and
no logger. Ordinary training is a bank of one.

Decisions:
- A member is a run of its own: its rows, their order, its rate, schedule, clipping, loss, best score and end depend on nothing that another member does. A member that is
  finished leaves, and the steps of the others become shorter.
- The order of rows is a function of (seed, epoch), so a position is a step number and nothing more, and resuming needs no generator state.
- Rows are grouped into optimiser steps first and cut into micro-batches second: how a step is cut changes neither its rows nor its dropout masks. Rows that a member's
  regularisers bring together are never cut apart.
- The loss of a step is a mean over its rows (weighted, where classes have weights), whatever the micro-batches: the normaliser is known before the first of them runs.
- On a CPU the rows of a step are shared out over worker threads; each takes the gradients of its own rows, and they are added in a fixed order.
- A step whose loss or gradient is not finite is skipped and counted; after too many in a row the member stops with a failure that names the rows.
- On a GPU nothing in a step waits for the device, which itself leaves out what is not finite: what came of a step is read while the next one runs.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabel.data.packing import MemberRows, pack_members, plan_batches
from lorabel.data.types import LabelArray
from lorabel.events import Evaluated, EventSink, Note, StepDone
from lorabel.models.bank import Bank
from lorabel.models.crew import Crew, crew_for_rows
from lorabel.models.states import FrozenStates, with_states
from lorabel.training.graphs import GraphRunner, why_not
from lorabel.training.objective import in_passes
from lorabel.training.passes import Passes, Share
from lorabel.training.precision import LossScale
from lorabel.training.randomness import numpy_generator
from lorabel.training.schedules import learning_rate_factor
from lorabel.training.shares import ROWS_PER_WORKER, Chunk, make_shares, tokens_per_joint_share
from lorabel.training.state import LoopSettings, MemberPlan, Position, Scores
from lorabel.training.under_way import BegunStep, MemberStep, Meter, StepsUnderWay
from lorabel.training.updates import MemberUpdate, Updater


class Hooks(Protocol):
    """What the workflow does for the loop."""

    def evaluate(self, members: Sequence[int]) -> list[Scores] | None:
        """Score the validation split with the present values of some members; None where a requested stop cut it short."""

    def leaving(self, positions: Sequence[Position], scored: Sequence[int]) -> Collection[int]:
        """Members, of those that have just been scored and have steps to do, that shall leave because others did better."""

    def save(self, positions: Sequence[Position], *, best: Collection[int]) -> None:
        """Save positions, values and optimiser state, durably, before returning; the members in `best` have just reached their best score."""

    def stop_requested(self) -> bool:
        """Whether a signal asked for a stop."""


@dataclass(frozen=True)
class Task:
    """What is trained on what.

    Attributes:
        bank: Encoder and members; its tensors are the updater's.
        updater: Optimiser over those tensors.
        plans: One per member.
        labels: Of the training split: class ids (N,) or indicators (N, C).
        device: Where batches go.
        states: What the frozen layers give for the training split, where that was computed beforehand.
    """

    bank: Bank
    updater: Updater
    plans: Sequence[MemberPlan]
    labels: LabelArray
    device: torch.device
    states: FrozenStates | None = None


def train(task: Task, settings: LoopSettings, positions: Sequence[Position], hooks: Hooks, on_event: EventSink) -> list[Position]:
    """Train from given positions to the end, or to a requested stop.

    Args:
        task: What is trained on what.
        settings: How.
        positions: Where each member starts; fresh, or restored together with the updater's state.
        hooks: Evaluate, save, stop.
        on_event: Receives `StepDone`, `Evaluated` and warnings.

    Returns:
        The last positions; a member's `is_finished` is False where a stop was requested, its `failure` is set where it could not go on.
    """
    return _Run(task, settings, positions, hooks, on_event).to_the_end()


@dataclass(frozen=True)
class _Outcome:
    """What came of one member's step."""

    loss: float
    grad_norm: float
    learning_rate: float
    rows: NDArray[np.int64]
    is_applied: bool
    is_excused: bool


class _Run:
    """The state of one call of `train`."""

    def __init__(self, task: Task, settings: LoopSettings, positions: Sequence[Position], hooks: Hooks, on_event: EventSink) -> None:
        self.task, self.settings, self.hooks, self.on_event = task, settings, hooks, on_event
        self.positions = list(positions)
        self.scales = [LossScale(task.bank.encoder.dtype == torch.float16) for _ in positions]
        for scale, position in zip(self.scales, positions, strict=True):
            if position.loss_scale:
                scale.restore(position.loss_scale)
        self.meter = Meter()
        self._is_saved = True
        self._under_way = StepsUnderWay(task.device)
        first_layer = 0 if task.states is None else task.states.layer
        self._joint_tokens = tokens_per_joint_share(task.device.type, task.bank.encoder.shape.num_layers, first_layer)
        can_capture = settings.has_graphs and why_not(task.bank, task.plans, has_states=task.states is not None) is None
        self._passes = Passes(task.bank, task.updater)
        self._graphs = GraphRunner(self._passes, on_event) if can_capture else None

    def to_the_end(self) -> list[Position]:
        """All steps still to be done."""
        self._evaluate_and_save([k for k, position in enumerate(self.positions) if position.evaluation_due])
        feeds = [_rows_from(plan, self.task, self.settings, position.step) for plan, position in zip(self.task.plans, self.positions, strict=True)]
        with crew_for_rows(self.settings.batch_size * len(feeds), self.task.device, ROWS_PER_WORKER) as crew:
            while active := self._active():
                if self.hooks.stop_requested():
                    self._wait()
                    if not self._is_saved:
                        self.hooks.save(self.positions, best=())
                    break
                self._step({k: next(feeds[k]) for k in active}, crew)
                self._is_saved = False
                due = [k for k in active if self._is_evaluation_due(k)]
                for k in due:
                    self.positions[k] = replace(self.positions[k], evaluation_due=True)
                self._evaluate_and_save(due)
        return self.positions

    def _active(self) -> list[int]:
        """Members that have steps to do; none while an evaluation that was cut short is still to be done."""
        if any(position.evaluation_due for position in self.positions):
            return []
        return [k for k, position in enumerate(self.positions) if not position.is_finished]

    def _is_evaluation_due(self, k: int) -> bool:
        position, plan = self.positions[k], self.task.plans[k]
        return not position.is_finished and (position.step == plan.total_steps or position.step % plan.evaluate_every_steps == 0)

    def _step(self, steps: Mapping[int, MemberStep], crew: Crew) -> None:
        """One optimiser step of every active member; what came of steps is booked and told when it is known."""
        started = time.perf_counter()
        begun = self._optimise(steps, crew)
        known = self._under_way.add(begun)
        self._move(begun, time.perf_counter() - started)
        for one, results in known:
            self._settle(one, results)

    def _wait(self) -> None:
        """Wait for all steps under way; the time counts as the last one's."""
        started = time.perf_counter()
        known = self._under_way.finish()
        if known:
            self._spend(known[-1][0], time.perf_counter() - started)
        for one, results in known:
            self._settle(one, results)

    def _move(self, begun: BegunStep, seconds: float) -> None:
        """Move the members of a step on by one."""
        self.meter.add(sum(len(step.rows) for step in begun.steps.values()), 0.0)
        for k, step in begun.steps.items():
            now = self.positions[k]
            self.positions[k] = replace(now, step=now.step + 1, samples=now.samples + len(step.rows), tokens=now.tokens + begun.tokens[k])
        self._spend(begun, seconds)
        begun.after.update({k: self.positions[k] for k in begun.steps})

    def _spend(self, begun: BegunStep, seconds: float) -> None:
        """Time of a step: members share it by their tokens."""
        self.meter.add(0, seconds)
        tokens = sum(begun.tokens.values())
        for k in begun.steps:
            self.positions[k] = replace(self.positions[k], seconds=self.positions[k].seconds + seconds * begun.tokens[k] / tokens)

    def _settle(self, begun: BegunStep, results: Sequence[Sequence[float]]) -> None:
        """Book what came of a step, and tell it where its turn is."""
        losses, norms = results
        turns = {k: after.step % self.settings.log_every_steps == 0 or after.step == self.task.plans[k].total_steps for k, after in begun.after.items()}
        rate = self.meter.read() if any(turns.values()) else 0.0
        for k, update in begun.updates.items():
            is_finite = math.isfinite(losses[k]) and math.isfinite(norms[k])
            # The loss is not scaled: where it is not finite itself, no scale is to blame.
            excused = math.isfinite(losses[k]) and self.scales[k].update(is_finite, 1.0 / update.unscale)
            outcome = _Outcome(losses[k], norms[k], self.task.plans[k].learning_rate * update.factor, begun.steps[k].rows, is_finite, excused)
            self._book(k, begun.after[k].step, outcome)
            if turns[k]:
                self.on_event(self._step_event(k, begun.after[k], outcome, rate))

    def _optimise(self, steps: Mapping[int, MemberStep], crew: Crew) -> BegunStep:
        """Forward and backward of all shares of one step, then the update; on a GPU none of it is waited for."""
        task, settings = self.task, self.settings
        task.updater.zero_grad()
        lengths = {k: (step.table.offsets[step.rows + 1] - step.table.offsets[step.rows]) * task.plans[k].passes for k, step in steps.items()}
        normalisers = {k: task.plans[k].loss.normaliser(torch.from_numpy(task.labels[step.rows])) for k, step in steps.items()}
        losses = torch.zeros(len(task.plans), dtype=torch.float32 if task.device.type == "mps" else torch.float64, device=task.device)
        together = max(plan.neighbours for plan in task.plans)
        rows_at_once = -(-settings.batch_size // together) * together
        for start in range(0, settings.step_rows, rows_at_once):
            parts = {k: of_member[start : start + rows_at_once] for k, of_member in lengths.items()}
            chunks = [Chunk(k, start + np.arange(len(part)), part, task.plans[k].neighbours) for k, part in parts.items() if len(part)]
            shares = make_shares(chunks, crew.workers, self._joint_tokens)
            run = crew.map if len(shares) > 1 else map
            for share, (found, grads) in zip(shares, run(lambda share: self._run_share(share, steps, normalisers), shares), strict=True):
                members = [chunk.member for chunk in share]
                if grads is not None:
                    self._passes.add(members[0], members[-1] + 1, grads)
                if members == list(range(members[0], members[-1] + 1)):
                    losses[members[0] : members[-1] + 1] += found
                else:
                    for k, loss in zip(members, found, strict=True):
                        losses[k] += loss
        return self._update(steps, losses, {k: int(of_member.sum()) for k, of_member in lengths.items()})

    def _run_share(
        self, chunks: Sequence[Chunk], steps: Mapping[int, MemberStep], normalisers: Mapping[int, float]
    ) -> tuple[Tensor, Sequence[Tensor | None] | None]:
        """Losses (n,) and gradients of one share, rows of n members in their order; None for gradients that are with the updater already."""
        share = self._share(chunks, steps, normalisers)
        losses = None if self._graphs is None else self._graphs.run(share)
        return (losses, None) if losses is not None else self._passes.run(share)

    def _share(self, chunks: Sequence[Chunk], steps: Mapping[int, MemberStep], normalisers: Mapping[int, float]) -> Share:
        """The rows of some members, laid out."""
        task, first, last = self.task, chunks[0].member, chunks[-1].member + 1
        places = {chunk.member: chunk.places for chunk in chunks}
        rows = []
        for k in range(first, last):
            of_member = steps[k].rows[places[k]] if k in places else np.zeros(0, dtype=np.int64)
            table = steps[k if k in places else first].table
            rows.append(in_passes(MemberRows(table, of_member, task.labels[of_member], places.get(k, of_member)), task.plans[k].passes))
        return Share(
            first,
            last,
            plans=task.plans[first:last],
            steps=[position.step for position in self.positions[first:last]],
            batch=with_states(pack_members(rows, task.bank.encoder.shape.first_position), task.states),
            members=[chunk.member for chunk in chunks],
            normalisers=[normalisers[chunk.member] for chunk in chunks],
            scales=[self.scales[chunk.member].value for chunk in chunks],
        )

    def _update(self, steps: Mapping[int, MemberStep], losses: Tensor, tokens: Mapping[int, int]) -> BegunStep:
        """Clip and update every member that took part."""
        task = self.task
        updates: dict[int, MemberUpdate] = {}
        for k in steps:
            plan, done = task.plans[k], self.positions[k].step
            factor = learning_rate_factor(plan.schedule, done, plan.total_steps, plan.steps_per_epoch)
            updates[k] = MemberUpdate(factor, plan.max_grad_norm, 1.0 / self.scales[k].value, step=done + 1)
        members = [updates.get(k) for k in range(len(task.plans))]
        results = None if self._graphs is None else self._graphs.update(members, losses)
        if results is None:
            results = torch.stack([losses, task.updater.update(members, losses).to(losses)])
        return BegunStep.of(steps, updates, tokens, results)

    def _book(self, k: int, step: int, outcome: _Outcome) -> None:
        """Book one member's step; stop the member where too many in a row were not finite."""
        position = replace(self.positions[k], loss_scale=self.scales[k].state())
        if outcome.is_applied:
            position = replace(position, loss_sum=position.loss_sum + outcome.loss, loss_steps=position.loss_steps + 1, skipped_in_a_row=0)
        elif not outcome.is_excused:
            position = self._skipped(k, step, position, outcome)
        self.positions[k] = position

    def _skipped(self, k: int, step: int, position: Position, outcome: _Outcome) -> Position:
        moved = replace(position, skipped_steps=position.skipped_steps + 1, skipped_in_a_row=position.skipped_in_a_row + 1)
        shown = ", ".join(str(row) for row in outcome.rows[:5])
        self.on_event(
            Note(
                f"Step {step}: loss {outcome.loss} or gradient norm {outcome.grad_norm} is not finite; the step was skipped (training rows {shown}, …).",
                is_warning=True,
                member=k,
            )
        )
        if moved.skipped_in_a_row < self.settings.max_nonfinite_steps:
            return moved
        failure = (
            f"training: {moved.skipped_in_a_row} steps in a row were not finite, got loss {outcome.loss} on training rows {shown}; expected numbers. "
            "Lower the learning rate, or look at these rows."
        )
        return replace(moved, failure=failure, is_finished=True)

    def _evaluate_and_save(self, due: Sequence[int]) -> None:
        """Score the validation split, keep the best, decide who goes on, save; where a stop cuts the scoring short, save that it is still to be done."""
        if not due:
            return
        self._wait()
        scores = self.hooks.evaluate(due)
        if scores is None:
            self.hooks.save(self.positions, best=())
            self._is_saved = True
            return
        best = [k for k, found in zip(due, scores, strict=True) if self._book_scores(k, found)]
        going_on = [k for k in due if not self.positions[k].is_finished]
        for k in self.hooks.leaving(self.positions, going_on):
            self.positions[k] = replace(self.positions[k], is_finished=True, is_pruned=True)
        self.hooks.save(self.positions, best=best)
        self._is_saved = True

    def _book_scores(self, k: int, scores: Scores) -> bool:
        """Book one member's evaluation; True where it is its best."""
        position, plan = self.positions[k], self.task.plans[k]
        value = scores.value_of(self.settings.best_metric)
        is_settled = position.step >= plan.settled_from
        # The first settled values replace the best of those before, whatever their scores.
        is_first = position.best_step is None or position.best_step < plan.settled_from <= position.step
        is_best = math.isfinite(value) and (is_first or position.best_score is None or value > position.best_score)
        train_loss = position.loss_sum / position.loss_steps if position.loss_steps else math.nan
        epoch = position.step / plan.steps_per_epoch
        self.on_event(Evaluated(position.step, epoch, scores.loss, scores.accuracy, scores.macro_f1, train_loss, is_best, position.seconds, k))
        without_gain = 0 if is_best or not is_settled else position.evaluations_without_gain + 1
        patience = plan.early_stopping_patience
        stopped_early = patience is not None and without_gain >= patience and position.step < plan.total_steps
        self.positions[k] = replace(
            position,
            best_step=position.step if is_best else position.best_step,
            best_score=value if is_best else position.best_score,
            evaluations_without_gain=without_gain,
            stopped_early=stopped_early,
            evaluation_due=False,
            is_finished=stopped_early or position.step == plan.total_steps,
            loss_sum=0.0,
            loss_steps=0,
        )
        return is_best

    def _step_event(self, k: int, after: Position, outcome: _Outcome, samples_per_second: float) -> StepDone:
        plan = self.task.plans[k]
        epoch = after.step / plan.steps_per_epoch
        return StepDone(after.step, plan.total_steps, epoch, outcome.loss, outcome.learning_rate, outcome.grad_norm, samples_per_second, after.seconds, k)


def _rows_from(plan: MemberPlan, task: Task, settings: LoopSettings, step: int) -> Iterator[MemberStep]:
    """The rows of each optimiser step that a member has still to do, with the epoch's token table."""
    first_epoch, done = divmod(step, plan.steps_per_epoch)
    for epoch in range(first_epoch, plan.num_epochs):
        table = plan.table_of_epoch(epoch)
        order = numpy_generator(plan.seed, "order", epoch)
        batches = plan_batches(table.lengths[plan.rows], settings.step_rows, order, settings.group_by_length)
        for places in batches[done:]:
            yield MemberStep(plan.rows[places], table)
        done = 0
