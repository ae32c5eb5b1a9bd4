"""What the loop is given and what it moves on: plans, settings, scores, positions. A position and the updater's tensors are all that resuming needs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorabel.config import ScheduleConfig
from lorabel.data.types import TokenTable
from lorabel.losses.base import Loss, Regulariser


@dataclass(frozen=True)
class MemberPlan:
    """How one member is trained, all values settled.

    Attributes:
        seed: Of its order, masks and augmentation.
        num_epochs: Passes over its training rows.
        steps_per_epoch: Optimiser steps in one pass.
        learning_rate: Peak rate, for display.
        max_grad_norm: Clipping norm, 0 for none.
        schedule: Shape of the learning rate.
        evaluate_every_steps: Steps between evaluations.
        early_stopping_patience: Evaluations without a better score before stopping, or None.
        loss: Per-row loss.
        rows: The rows of the training split that it sees (N,).
        table_of_epoch: Token table of an epoch; the same each time unless texts are augmented.
        regularisers: What is done to rows and losses beside; each takes the losses of the one before it.
        settled_from: Step from which values may be kept; before it the best are provisional, and patience does not run out.
    """

    seed: int
    num_epochs: int
    steps_per_epoch: int
    learning_rate: float
    max_grad_norm: float
    schedule: ScheduleConfig
    evaluate_every_steps: int
    early_stopping_patience: int | None
    loss: Loss
    rows: NDArray[np.int64]
    table_of_epoch: Callable[[int], TokenTable]
    settled_from: int = 0
    regularisers: tuple[Regulariser, ...] = ()

    @property
    def total_steps(self) -> int:
        """Optimiser steps in all."""
        return self.num_epochs * self.steps_per_epoch

    @property
    def passes(self) -> int:
        """How often each row goes through in a step."""
        return max((regulariser.passes for regulariser in self.regularisers), default=1)

    @property
    def neighbours(self) -> int:
        """Rows of a step that go through together: places 0 to n - 1, n to 2n - 1, and so on."""
        return math.lcm(*(regulariser.neighbours for regulariser in self.regularisers))


@dataclass(frozen=True)
class LoopSettings:
    """What all members share.

    Attributes:
        batch_size: Sequences of a member per micro-batch.
        gradient_accumulation_steps: Micro-batches per step.
        best_metric: `accuracy`, `macro_f1` or `loss`.
        group_by_length: Batches of similar length.
        max_nonfinite_steps: Skipped steps in a row before a member stops.
        log_every_steps: Steps between two `StepDone` events of a member.
        has_graphs: On a GPU, steps are captured and replayed where they can be.
    """

    batch_size: int
    gradient_accumulation_steps: int
    best_metric: str
    group_by_length: bool
    max_nonfinite_steps: int
    log_every_steps: int = 1
    has_graphs: bool = True

    @property
    def step_rows(self) -> int:
        """Rows of one optimiser step of a member."""
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


@dataclass(frozen=True)
class Position:
    """Where a member is: everything but tensors that resuming needs.

    Attributes:
        step: Optimiser steps done.
        best_step: Step of the best score, or None before the first evaluation.
        best_score: That score.
        evaluations_without_gain: Since the best one.
        is_finished: No more steps are to be done.
        stopped_early: Patience ran out.
        is_pruned: It left because others did better.
        failure: Why it stopped before its time, or None.
        evaluation_due: The validation split is still to be scored at this step.
        loss_sum: Sum of step losses since the last evaluation.
        loss_steps: Their number.
        skipped_steps: Steps skipped for values that are not finite.
        skipped_in_a_row: The same, since the last good step.
        seconds: Training seconds, evaluation and saving left out; members that share a step share its time by their tokens.
        samples: Sequences trained on.
        tokens: Tokens trained on, once for each pass.
        loss_scale: State of the loss scale.
    """

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    evaluations_without_gain: int = 0
    is_finished: bool = False
    stopped_early: bool = False
    is_pruned: bool = False
    failure: str | None = None
    evaluation_due: bool = False
    loss_sum: float = 0.0
    loss_steps: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    loss_scale: dict[str, float] = field(default_factory=dict)
