"""THE training loop: read this first.

One optimiser step is: take the next rows, run them through the bank in micro-batches, add up gradients, clip, update. Everything else hangs on hooks that the workflow
provides: how to score the validation split, how to save, whether to stop. The loop knows no method, no file format and no logger.

Decisions:
- The order of rows is a function of (seed, epoch), so a position is a step number and nothing more, and resuming needs no generator state.
- Rows are grouped into optimiser steps first and cut into micro-batches second: how a step is cut changes neither its rows nor its dropout masks.
- The loss of a step is a mean over its rows (weighted, where classes have weights), whatever the micro-batches: the normaliser is known before the first of them runs.
- On a CPU the rows of a micro-batch are shared out over worker threads; each takes the gradients of its own rows, and they are added in a fixed order.
- A step whose loss or gradient is not finite is skipped and counted; after too many in a row the run stops and names the rows.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabel.config import ScheduleConfig
from lorabel.data.packing import pack, plan_batches
from lorabel.data.types import TokenTable
from lorabel.errors import DataError
from lorabel.events import Evaluated, EventSink, Note, StepDone
from lorabel.losses.base import Loss
from lorabel.models.bank import Bank
from lorabel.models.crew import Crew, crew_for_rows, deal
from lorabel.training.precision import LossScale
from lorabel.training.randomness import StepMasks, numpy_generator
from lorabel.training.schedules import learning_rate_factor
from lorabel.training.updates import Updater, add_grads

# A worker's share below these sizes costs more in small operations than it saves in waiting.
_ROWS_PER_WORKER = 8
_TOKENS_PER_WORKER = 600


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know, all values settled.

    Attributes:
        num_epochs: Passes over the training rows.
        steps_per_epoch: Optimiser steps in one pass.
        batch_size: Sequences per micro-batch.
        gradient_accumulation_steps: Micro-batches per step.
        learning_rate: Peak rate, for display.
        max_grad_norm: Clipping norm, 0 for none.
        schedule: Shape of the learning rate.
        evaluate_every_steps: Steps between evaluations.
        early_stopping_patience: Evaluations without a better score before stopping, or None.
        best_metric: `accuracy`, `macro_f1` or `loss`.
        group_by_length: Batches of similar length.
        seeds: One per member.
        max_nonfinite_steps: Skipped steps in a row before the run stops.
        log_every_steps: Steps between two `StepDone` events.
    """

    num_epochs: int
    steps_per_epoch: int
    batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    max_grad_norm: float
    schedule: ScheduleConfig
    evaluate_every_steps: int
    early_stopping_patience: int | None
    best_metric: str
    group_by_length: bool
    seeds: tuple[int, ...]
    max_nonfinite_steps: int
    log_every_steps: int = 1

    @property
    def total_steps(self) -> int:
        """Optimiser steps in all."""
        return self.num_epochs * self.steps_per_epoch

    @property
    def step_rows(self) -> int:
        """Rows of one optimiser step."""
        return self.batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True)
class Scores:
    """The validation split's scores."""

    loss: float
    accuracy: float
    macro_f1: float

    def value_of(self, metric: str) -> float:
        """The score that is maximised: the named metric, the loss negated."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "loss": -self.loss}[metric]


@dataclass
class Position:
    """Where a run is: everything but tensors that resuming needs.

    Attributes:
        step: Optimiser steps done.
        best_step: Step of the best score, or None before the first evaluation.
        best_score: That score.
        evaluations_without_gain: Since the best one.
        is_finished: No more steps are to be done.
        stopped_early: Patience ran out.
        evaluation_due: The validation split is still to be scored at this step.
        loss_sum: Sum of step losses since the last evaluation.
        loss_steps: Their number.
        skipped_steps: Steps skipped for values that are not finite.
        skipped_in_a_row: The same, since the last good step.
        seconds: Training seconds, evaluation and saving left out.
        samples: Sequences trained on.
        tokens: Tokens trained on.
        loss_scale: State of the loss scale.
    """

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    evaluations_without_gain: int = 0
    is_finished: bool = False
    stopped_early: bool = False
    evaluation_due: bool = False
    loss_sum: float = 0.0
    loss_steps: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    loss_scale: dict[str, float] = field(default_factory=dict)


class Hooks(Protocol):
    """What the workflow does for the loop."""

    def evaluate(self) -> Scores | None:
        """Score the validation split with the present values; None where a requested stop cut it short."""

    def save(self, position: Position, *, is_best: bool) -> None:
        """Save position, values and optimiser state, durably, before returning."""

    def stop_requested(self) -> bool:
        """Whether a signal asked for a stop."""


@dataclass(frozen=True)
class Task:
    """What is trained on what.

    Attributes:
        bank: Encoder and members; its tensors are the updater's.
        updater: Optimiser over those tensors.
        loss: Per-row loss.
        table_of_epoch: Token table of an epoch; the same each time unless texts are augmented.
        labels: Class ids (N,).
        device: Where batches go.
    """

    bank: Bank
    updater: Updater
    loss: Loss
    table_of_epoch: Callable[[int], TokenTable]
    labels: NDArray[np.int64]
    device: torch.device


def train(task: Task, settings: LoopSettings, position: Position, hooks: Hooks, on_event: EventSink) -> Position:
    """Train from a position to the end, or to a requested stop.

    Args:
        task: What is trained on what.
        settings: How.
        position: Where to start; fresh, or restored together with the updater's state.
        hooks: Evaluate, save, stop.
        on_event: Receives `StepDone`, `Evaluated` and warnings.

    Returns:
        The last position; `is_finished` is False where a stop was requested.

    Raises:
        DataError: Too many steps in a row were not finite.
    """
    scale = LossScale(task.bank.encoder.dtype == torch.float16)
    if position.loss_scale:
        scale.restore(position.loss_scale)
    if position.evaluation_due:
        position = _evaluate_and_save(position, settings, hooks, on_event)
    with crew_for_rows(settings.batch_size, task.device, _ROWS_PER_WORKER) as crew:
        return _steps(task, settings, position, hooks, on_event, scale, crew)


def _steps(task: Task, settings: LoopSettings, position: Position, hooks: Hooks, on_event: EventSink, scale: LossScale, crew: Crew) -> Position:
    """All steps still to be done."""
    meter = _Meter()
    for rows, table in _rows_from(task, settings, position.step):
        if position.is_finished or position.evaluation_due:
            break
        started = time.perf_counter()
        outcome = _optimiser_step(task, settings, position.step, rows, table, scale, crew)
        position = _advance(position, settings, outcome, rows, scale, time.perf_counter() - started, on_event)
        meter.add(len(rows), time.perf_counter() - started)
        if position.step % settings.log_every_steps == 0 or position.step == settings.total_steps:
            on_event(_step_event(position, settings, outcome, meter))
        is_last = position.step == settings.total_steps
        if is_last or position.step % settings.evaluate_every_steps == 0:
            position = _evaluate_and_save(replace(position, evaluation_due=True), settings, hooks, on_event)
        elif hooks.stop_requested():
            hooks.save(position, is_best=False)
            break
        if hooks.stop_requested():
            break
    return position


@dataclass(frozen=True)
class _Outcome:
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    is_applied: bool
    is_excused: bool


def _rows_from(task: Task, settings: LoopSettings, step: int) -> Iterator[tuple[NDArray[np.int64], TokenTable]]:
    """The rows of each optimiser step still to be done, with the epoch's token table."""
    first_epoch, done = divmod(step, settings.steps_per_epoch)
    for epoch in range(first_epoch, settings.num_epochs):
        table = task.table_of_epoch(epoch)
        order = numpy_generator(settings.seeds[0], "order", epoch)
        batches = plan_batches(table.lengths, settings.step_rows, order, settings.group_by_length)
        for rows in batches[done:]:
            yield rows, table
        done = 0


def _optimiser_step(task: Task, settings: LoopSettings, step: int, rows: NDArray[np.int64], table: TokenTable, scale: LossScale, crew: Crew) -> _Outcome:
    """Forward and backward of all micro-batches of one step, then the update."""
    task.updater.zero_grad()
    normaliser = task.loss.normaliser(torch.from_numpy(task.labels[rows]))
    lengths = table.offsets[rows + 1] - table.offsets[rows]
    leaves = list(task.updater.tensors.values())

    def run_share(places: NDArray[np.int64]) -> tuple[float, Sequence[Tensor | None]]:
        part = rows[places]
        batch = pack(table, part, task.labels[part], task.bank.encoder.shape.first_position, places).to(task.device)
        assert batch.labels is not None
        logits = task.bank.logits(batch, StepMasks(batch, settings.seeds, step))
        loss = task.loss.rows(logits, batch.labels).sum() / normaliser
        scaled = loss * scale.value if scale.value != 1.0 else loss
        return loss.item(), torch.autograd.grad(scaled, leaves, allow_unused=True)

    total = 0.0
    for start in range(0, len(rows), settings.batch_size):
        part = lengths[start : start + settings.batch_size]
        workers = crew.workers if part.sum() >= crew.workers * _TOKENS_PER_WORKER else 1
        shares = [start + places for places in deal(part, workers)]
        for loss, grads in (crew.map if workers > 1 else map)(run_share, shares):
            total += loss
            add_grads(leaves, grads)
    factor = learning_rate_factor(settings.schedule, step, settings.total_steps, settings.steps_per_epoch)
    norm = task.updater.update(factor, settings.max_grad_norm, 1.0 / scale.value, is_allowed=math.isfinite(total))
    is_finite = math.isfinite(total) and math.isfinite(norm)
    excused = scale.update(is_finite)
    return _Outcome(total, norm, settings.learning_rate * factor, int(lengths.sum()), is_finite, excused)


def _advance(
    position: Position, settings: LoopSettings, outcome: _Outcome, rows: NDArray[np.int64], scale: LossScale, seconds: float, on_event: EventSink
) -> Position:
    """Book one step; raise where too many in a row were not finite."""
    moved = replace(
        position,
        step=position.step + 1,
        seconds=position.seconds + seconds,
        samples=position.samples + len(rows),
        tokens=position.tokens + outcome.tokens,
        loss_scale=scale.state(),
    )
    if outcome.is_applied:
        return replace(moved, loss_sum=position.loss_sum + outcome.loss, loss_steps=position.loss_steps + 1, skipped_in_a_row=0)
    if outcome.is_excused:
        return moved
    moved = replace(moved, skipped_steps=position.skipped_steps + 1, skipped_in_a_row=position.skipped_in_a_row + 1)
    shown = ", ".join(str(row) for row in rows[:5])
    on_event(
        Note(
            f"step {moved.step}: loss {outcome.loss} or gradient norm {outcome.grad_norm} is not finite; the step was skipped (training rows {shown}, …).",
            is_warning=True,
        )
    )
    if moved.skipped_in_a_row >= settings.max_nonfinite_steps:
        raise DataError(
            f"training: {moved.skipped_in_a_row} steps in a row were not finite, got loss {outcome.loss} on training rows {shown}; expected numbers. "
            "Lower the learning rate, or look at these rows."
        )
    return moved


def _evaluate_and_save(position: Position, settings: LoopSettings, hooks: Hooks, on_event: EventSink) -> Position:
    """Score the validation split, keep the best, decide whether to go on, save; where a stop cuts the scoring short, save that it is still to be done."""
    scores = hooks.evaluate()
    if scores is None:
        hooks.save(position, is_best=False)
        return position
    value = scores.value_of(settings.best_metric)
    is_best = math.isfinite(value) and (position.best_score is None or value > position.best_score)
    train_loss = position.loss_sum / position.loss_steps if position.loss_steps else math.nan
    on_event(
        Evaluated(position.step, position.step / settings.steps_per_epoch, scores.loss, scores.accuracy, scores.macro_f1, train_loss, is_best, position.seconds)
    )
    without_gain = 0 if is_best else position.evaluations_without_gain + 1
    patience = settings.early_stopping_patience
    stopped_early = patience is not None and without_gain >= patience and position.step < settings.total_steps
    moved = replace(
        position,
        best_step=position.step if is_best else position.best_step,
        best_score=value if is_best else position.best_score,
        evaluations_without_gain=without_gain,
        stopped_early=stopped_early,
        evaluation_due=False,
        is_finished=stopped_early or position.step == settings.total_steps,
        loss_sum=0.0,
        loss_steps=0,
    )
    hooks.save(moved, is_best=is_best)
    return moved


class _Meter:
    """Samples per second since the last reading."""

    def __init__(self) -> None:
        self._samples, self._seconds = 0, 0.0

    def add(self, samples: int, seconds: float) -> None:
        self._samples += samples
        self._seconds += seconds

    def read(self) -> float:
        rate = self._samples / self._seconds if self._seconds else 0.0
        self._samples, self._seconds = 0, 0.0
        return rate


def _step_event(position: Position, settings: LoopSettings, outcome: _Outcome, meter: _Meter) -> StepDone:
    epoch = position.step / settings.steps_per_epoch
    return StepDone(position.step, settings.total_steps, epoch, outcome.loss, outcome.learning_rate, outcome.grad_norm, meter.read(), position.seconds)
