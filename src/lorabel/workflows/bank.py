"""Training a bank: some prepared runs over one encoder and one table, from the first step to the kept values.

`train` fills it with one run, `sweep` with many. This file owns what the loop's hooks need (scoring, saving, stopping) and knows no run folder but the checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lorabel.artifacts.checkpoints import Checkpoint, CheckpointStore
from lorabel.data.augmentations.base import make_augmentation
from lorabel.data.packing import tokenise
from lorabel.data.types import SplitName, TokenTable
from lorabel.evaluation import accuracy_and_macro_f1, mean_loss
from lorabel.events import EventSink, Note, Progress
from lorabel.inference.predictor import table_logits
from lorabel.inference.states import StateKey, frozen_states, states_size
from lorabel.losses.base import make_regularisers
from lorabel.models.bank import first_adapted_layer
from lorabel.models.checkpoint import weights_digest
from lorabel.models.encoder import PackedEncoder
from lorabel.models.states import FrozenStates
from lorabel.training.allocation import with_allocators
from lorabel.training.loop import Task, train
from lorabel.training.randomness import numpy_generator
from lorabel.training.schedules import default_evaluation_steps, default_num_epochs, warmup_steps
from lorabel.training.state import LoopSettings, MemberPlan, Position, Scores
from lorabel.workflows.answering import answer_rule, best_metric
from lorabel.workflows.building import Trainee, build_trainee, learning_rate_of
from lorabel.workflows.circumstances import check_circumstances, circumstances
from lorabel.workflows.preparation import Prepared, cache_dir
from lorabel.workflows.stopping import StopRequest

_LOG_EVENTS_PER_RUN = 2000
# The splits that are read more than once.
_IN_TRAINING: tuple[SplitName, ...] = ("train", "validation")


@dataclass(frozen=True)
class TrainedBank:
    """A bank after training.

    Attributes:
        trainee: Bank with the kept (best) values, and its updater.
        plans: One per member.
        positions: Where each member ended.
        validation_logits: A member's number -> class scores (N, C) of the validation split under the kept values, as they were when those were found to be the best.
    """

    trainee: Trainee
    plans: tuple[MemberPlan, ...]
    positions: tuple[Position, ...]
    validation_logits: Callable[[int], NDArray[np.float64]]


def make_plans(members: Sequence[Prepared], on_event: EventSink) -> tuple[MemberPlan, ...]:
    """Settle how each member is trained.

    Args:
        members: The runs.
        on_event: Receives progress where texts are augmented, and a warning where a learning rate never reaches its peak.
    """
    plans = tuple(_plan(member, on_event) for member in members)
    for warmup, total in sorted({(warmup_steps(plan.schedule, plan.total_steps), plan.total_steps) for plan in plans}):
        if warmup >= total:
            text = f"The warm-up of {warmup} steps is as long as the run of {total} or longer: the learning rate never reaches its peak. Lower schedule.warmup_steps."
            on_event(Note(text, is_warning=True))
    return plans


def _plan(prepared: Prepared, on_event: EventSink) -> MemberPlan:
    config = prepared.config.training
    rows = prepared.train_rows
    steps_per_epoch = -(-len(rows) // (config.batch_size * config.gradient_accumulation_steps))
    num_epochs = config.num_epochs or default_num_epochs(len(rows), len(prepared.data.labels), steps_per_epoch)
    between = steps_per_epoch if config.num_epochs else default_evaluation_steps(num_epochs, steps_per_epoch)
    return MemberPlan(
        seed=config.seed,
        num_epochs=num_epochs,
        steps_per_epoch=steps_per_epoch,
        learning_rate=learning_rate_of(prepared),
        max_grad_norm=config.max_grad_norm,
        schedule=prepared.config.schedule,
        evaluate_every_steps=config.evaluate_every_steps or between,
        early_stopping_patience=config.early_stopping_patience,
        loss=prepared.criterion,
        regularisers=make_regularisers(prepared.loss),
        rows=rows,
        table_of_epoch=_tables(prepared, on_event),
        settled_from=prepared.method.settled_from(num_epochs * steps_per_epoch),
    )


def _loop_settings(prepared: Prepared, plans: Sequence[MemberPlan]) -> LoopSettings:
    config = prepared.config.training
    return LoopSettings(
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        best_metric=best_metric(prepared.config, prepared.data.task),
        group_by_length=config.group_by_length,
        max_nonfinite_steps=config.max_nonfinite_steps,
        log_every_steps=max(1, max(plan.total_steps for plan in plans) // _LOG_EVENTS_PER_RUN),
        has_graphs=config.cuda_graphs,
    )


def train_bank(
    members: Sequence[Prepared],
    plans: Sequence[MemberPlan],
    weights: Mapping[str, Tensor],
    store: CheckpointStore,
    checkpoint: Checkpoint | None,
    stop: StopRequest,
    on_event: EventSink,
    on_start: Callable[[Sequence[Position]], None] = lambda _positions: None,
    leaving: Callable[[Sequence[float]], Collection[int]] = lambda _scores: (),
) -> TrainedBank:
    """Train to the end or to a requested stop; the best values are put back.

    Args:
        members: The runs; they share encoder, head, data and method.
        plans: As `make_plans` gives them.
        weights: The encoder's canonical tensors.
        store: Where the state is saved.
        checkpoint: Where to go on from, or None.
        stop: Whether a stop was asked for.
        on_event: Receives notes, progress, steps and evaluations.
        on_start: Told where each member starts, before the first step.
        leaving: Of the best scores so far of members that were scored at the same step, says which of them shall leave.

    Raises:
        DataError: The rows or the encoder are not those the run to resume began with.
    """
    trainee = _accompanied(build_trainee(members, weights), plans)
    states = _frozen_states(members, plans, trainee, weights, on_event)
    hooks = _BankHooks(store, members, circumstances(members[0], weights), trainee, states.get("validation"), stop, on_event, leaving)
    positions = hooks.restore(checkpoint) if checkpoint is not None else [Position()] * len(members)
    on_start(positions)
    first = members[0]
    task = Task(trainee.bank, trainee.updater, plans, first.data.splits["train"].labels, first.compute.device, states.get("train"))
    positions = train(task, _loop_settings(first, plans), positions, hooks, on_event)
    if not stop:
        hooks.take_best(positions)
    return TrainedBank(trainee, tuple(plans), tuple(positions), hooks.kept_logits)


def _accompanied(trainee: Trainee, plans: Sequence[MemberPlan]) -> Trainee:
    """With what the members' methods do in training beside the gradients of their rows."""
    bank = trainee.bank
    return dataclasses.replace(trainee, updater=with_allocators(trainee.updater, bank.methods, bank.encoder.shape, [plan.total_steps for plan in plans]))


def _tables(prepared: Prepared, on_event: EventSink) -> Callable[[int], TokenTable]:
    """Token table of an epoch: the cached one, or one with augmented texts, keyed by (seed, epoch, row)."""
    config = prepared.config
    augmentation = make_augmentation(config.data)
    if augmentation is None:
        return lambda _epoch: prepared.tables["train"]
    texts = prepared.data.splits["train"].texts

    def augmented(epoch: int) -> TokenTable:
        changed = list(texts)
        for row, text in enumerate(changed):
            generator = numpy_generator(config.training.seed, "augmentation", epoch, row)
            if generator.random() < config.data.augmentation_probability:
                changed[row] = augmentation(text, generator)
        return tokenise(changed, prepared.tokenizer, prepared.tokenizer_digest, prepared.max_length_tokens, windows=prepared.windows, on_event=on_event)

    return augmented


def _frozen_states(
    members: Sequence[Prepared], plans: Sequence[MemberPlan], trainee: Trainee, weights: Mapping[str, Tensor], on_event: EventSink
) -> dict[SplitName, FrozenStates]:
    """States of the layers below the lowest adapted one, for the splits in use, where they are used more than once and fit the limit."""
    first, encoder = members[0], trainee.bank.encoder
    layer = first_adapted_layer(trainee.bank.methods, encoder.shape)
    limit = int(first.config.training.state_cache_gb * 1e9)
    if layer == 0 or limit == 0 or sum(plan.num_epochs for plan in plans) < 2:
        return {}
    whole = f"all {layer}" if layer == encoder.shape.num_layers else f"the lower {layer} of {encoder.shape.num_layers}"
    hindrance = _why_no_states(first, layer, limit, encoder)
    if hindrance is not None:
        on_event(Note(f"{whole[0].upper()}{whole[1:]} layers are frozen, but are computed anew at every step: {hindrance}."))
        return {}
    on_event(Note(f"{whole[0].upper()}{whole[1:]} layers are frozen: they are computed once for all members and epochs."))
    has_products = (
        layer < encoder.shape.num_layers
        and encoder.reads_products(layer, trainee.bank.adapters())
        and _states_size(first, encoder, layer, has_products=True) <= limit
    )
    digest = weights_digest(weights)
    found = {}
    for name in _IN_TRAINING:
        tokens = f"{first.data.splits[name].digest}|{first.tokenizer_digest}|{first.max_length_tokens}"
        if first.windows is not None:
            tokens += f"|{first.windows.stride_tokens}|{first.windows.max_windows}"
        key = StateKey(tokens, digest, layer, first.head.pooling, has_products)
        found[name] = frozen_states(first.tables[name], encoder, key, cache_dir() / "states", limit, on_event)
    return found


def _why_no_states(prepared: Prepared, layer: int, limit: int, encoder: PackedEncoder) -> str | None:
    """What forbids computing frozen layers once, in words; None where nothing does."""
    if prepared.config.encoder.dropout:
        return "the encoder's own dropout is on"
    if make_augmentation(prepared.config.data) is not None:
        return "texts are augmented"
    size = _states_size(prepared, encoder, layer)
    return f"their states would take {size / 1e9:.1f} GB, and training.state_cache_gb is {limit / 1e9:g}" if size > limit else None


def _states_size(prepared: Prepared, encoder: PackedEncoder, layer: int, *, has_products: bool = False) -> int:
    """Bytes of the states of all splits in use."""
    return sum(states_size(prepared.tables[name], encoder, layer, has_products=has_products) for name in _IN_TRAINING)


class _Interrupted(Exception):  # noqa: N818
    """A signal arrived while the validation split was being scored."""


class _BankHooks:
    """Evaluation, saving and stopping; implements `training.loop.Hooks`."""

    def __init__(
        self,
        store: CheckpointStore,
        members: Sequence[Prepared],
        surroundings: Mapping[str, Any],
        trainee: Trainee,
        states: FrozenStates | None,
        stop: StopRequest,
        on_event: EventSink,
        leaving: Callable[[Sequence[float]], Collection[int]],
    ) -> None:
        self._store = store
        self._members = members
        self._circumstances = surroundings
        self._trainee = trainee
        self._states = states
        self._stop = stop
        self._on_event = on_event
        self._leaving = leaving
        self._best: dict[str, Tensor] = {}
        self._has_best: set[int] = set()
        self._logits: dict[int, NDArray[np.float64]] = {}
        self._best_logits: dict[int, NDArray[np.float64]] = {}

    def evaluate(self, members: Sequence[int]) -> list[Scores] | None:
        """Score the validation split; None where a signal arrives meanwhile."""
        try:
            return [self._score(k, turn * self._validation_rows, len(members) * self._validation_rows) for turn, k in enumerate(members)]
        except _Interrupted:
            return None

    @property
    def _validation_rows(self) -> int:
        return len(self._members[0].tables["validation"])

    def kept_logits(self, k: int) -> NDArray[np.float64]:
        """Class scores of the validation split under the kept values: those of the best evaluation, or the same bits anew where a resumed run did not see it."""
        total = self._validation_rows
        return self._best_logits[k] if k in self._best_logits else self._compute_logits(k, lambda rows: self._on_event(Progress("evaluating", rows, total)))

    def _compute_logits(self, k: int, on_rows: Callable[[int], None]) -> NDArray[np.float64]:
        return table_logits(self._trainee.bank.select(k, k + 1), self._members[k].tables["validation"], on_rows, self._states)

    def _score(self, k: int, done: int, total: int) -> Scores:
        labels = self._members[k].data.splits["validation"].labels
        logits = self._logits[k] = self._compute_logits(k, lambda rows: self._scored(done + rows, total))
        if not np.isfinite(logits).all():
            # The largest of NaN is the first class, and no NaN reaches a threshold: both would be scored as if they were answers.
            return Scores(math.nan, math.nan, math.nan)
        rule = answer_rule(self._members[k], labels, logits, temperature=1.0)
        found = rule.probabilities(logits)
        return Scores(mean_loss(labels, found), *accuracy_and_macro_f1(labels, found, rule.thresholds))

    def leaving(self, positions: Sequence[Position], scored: Sequence[int]) -> Collection[int]:
        """Ask for those that were scored at one step; a score that is not finite is the worst."""
        scores = [-math.inf if (score := positions[k].best_score) is None else score for k in scored]
        return [scored[place] for place in self._leaving(scores)]

    def _scored(self, done: int, total: int) -> None:
        self._on_event(Progress("evaluating", done, total))
        if self._stop and done < total:
            raise _Interrupted

    def save(self, positions: Sequence[Position], *, best: Collection[int]) -> None:
        """Save positions, values and optimiser state; the best values go along until they are beaten."""
        state = self._trainee.updater.state()
        for name, tensor in state.items():
            if name.startswith("values") and best:
                self._best.setdefault(name, tensor.clone())
                self._keep(name, tensor, best)
        self._has_best |= set(best)
        self._best_logits |= {k: self._logits[k] for k in best}
        self._logits.clear()
        tensors = {**{f"now.{name}": tensor for name, tensor in state.items()}, **{f"best.{name}": tensor for name, tensor in self._best.items()}}
        meta = {
            "positions": [dataclasses.asdict(position) for position in positions],
            **self._circumstances,
        }
        self._store.save(sum(position.step for position in positions), tensors, meta)

    def _keep(self, name: str, tensor: Tensor, members: Collection[int]) -> None:
        """Take some members' values as their best: rows of the arena, or a whole tensor where there is one member."""
        if len(self._members) == 1:
            self._best[name] = tensor.clone()
        else:
            self._best[name][sorted(members)] = tensor[sorted(members)]

    def stop_requested(self) -> bool:
        """Whether a signal arrived."""
        return bool(self._stop)

    def restore(self, checkpoint: Checkpoint) -> list[Position]:
        """Take values, optimiser state and best values from a checkpoint; returns its positions.

        Raises:
            DataError: The rows, the encoder or the head are not those the run began with.
        """
        check_circumstances(checkpoint.meta, self._circumstances, self._on_event)
        self._trainee.updater.restore({name.removeprefix("now."): tensor for name, tensor in checkpoint.tensors.items() if name.startswith("now.")})
        device = self._members[0].compute.device
        # Rows of them are taken from and put among values on that device.
        self._best = {name.removeprefix("best."): tensor.to(device) for name, tensor in checkpoint.tensors.items() if name.startswith("best.")}
        positions = [Position(**fields) for fields in checkpoint.meta["positions"]]
        self._has_best = {k for k, position in enumerate(positions) if position.best_step is not None}
        self._on_event(Note(f"Going on from step {max(position.step for position in positions)}."))
        return positions

    def take_best(self, positions: Sequence[Position]) -> None:
        """Put the best values back; a member without one that is finite keeps its last values, and it is said."""
        for k, position in enumerate(positions):
            if k not in self._has_best and position.failure is None:
                self._on_event(Note("No evaluation gave a finite score; the last values are kept.", is_warning=True, member=k))
        if self._has_best:
            kept = self._trainee.updater.state()
            for name, tensor in self._best.items():
                if len(self._members) == 1:
                    kept[name] = tensor
                else:
                    rows = sorted(self._has_best)
                    kept[name][rows] = tensor[rows]
            self._trainee.updater.restore(kept)
