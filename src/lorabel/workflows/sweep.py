"""`sweep`: many settings of one task, trained side by side in banks.

Members whose settings allow it share a bank: one pass over the frozen encoder's weights serves them all, and none of them influences another. Unlike methods, heads, batch
sizes or update rules go into banks of their own. What is to be tried is written down before it is trained, so that a sweep that was killed goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorabel.artifacts.checkpoints import CheckpointStore
from lorabel.artifacts.history import History
from lorabel.artifacts.lock import RunLock
from lorabel.artifacts.records import RunRecord
from lorabel.artifacts.store import write_text
from lorabel.artifacts.sweeps import SweepLayout, SweepMember, SweepRecord, read_sweep, write_sweep
from lorabel.config import RunConfig, load_config
from lorabel.data.ledger import folder_beside
from lorabel.errors import BudgetError, ConfigError, DataError, StoppedError, first_of
from lorabel.events import EventSink, Note, ignore
from lorabel.models.checkpoint import load_weights
from lorabel.search.space import Assignment, Distribution, describe, nested
from lorabel.search.study import FIRST_NAME, SamplerName, Study, TrialResult, optuna_library
from lorabel.training.state import Position
from lorabel.workflows.answering import best_metric
from lorabel.workflows.bank import TrainedBank, make_plans, train_bank
from lorabel.workflows.bank_planning import Group, bank_key, halving, is_out_of_memory, members_that_fit, nobody
from lorabel.workflows.building import Trainee
from lorabel.workflows.circumstances import check_inputs, inputs_of
from lorabel.workflows.finishing import Ending, finish, forget_peak_memory
from lorabel.workflows.held_out import write_held_out
from lorabel.workflows.member_log import MemberLog, notes_of, warning_of
from lorabel.workflows.out_folder import check_out_folder, clear_folder
from lorabel.workflows.preparation import Prepared, prepare, prepare_like
from lorabel.workflows.stopping import StopRequest, stop_on_signals
from lorabel.workflows.sweep_report import write_sweep_report
from lorabel.workflows.tracking import Tracking, check_trackers


@dataclass(frozen=True)
class Search:
    """A search in place of a grid.

    Attributes:
        space: Setting -> distribution.
        trials: How many settings are tried.
        sampler: `tpe` learns from what came before, `random` does not.
        seed: Of the sampler.
        storage: Optuna storage URL; None for SQLite in the sweep folder.
        has_two_objectives: Fewer parameters count as well as a better score.
    """

    space: Mapping[str, Distribution]
    trials: int
    sampler: SamplerName = "tpe"
    seed: int = 0
    storage: str | None = None
    has_two_objectives: bool = False


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run.

    Attributes:
        halving: After each evaluation the worse part of a bank leaves, all but one in this many; None lets all finish.
        bank_size: Most members of a bank; None chooses by free memory.
        ending: How members end; without a ledger of its own, the one beside the sweep folder.
    """

    halving: int | None = None
    bank_size: int | None = None
    ending: Ending = Ending(verb="sweep")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep made.

    Attributes:
        root: The sweep folder.
        record: Its record.
    """

    root: Path
    record: SweepRecord


def run_sweep(
    base: Sequence[Mapping[str, Any]],
    source: Sequence[Assignment] | Search,
    out: Path,
    options: SweepOptions = SweepOptions(),  # noqa: B008
    *,
    resume: bool = False,
    overwrite: bool = False,
    may_open_test: bool = False,
    on_event: EventSink = ignore,
) -> SweepResult:
    """Try many settings and keep an adapter of each.

    Args:
        base: Layers of settings below every assignment, as `load_config` takes them.
        source: The assignments of a grid, or a search.
        out: The sweep folder; it must not exist unless `resume` or `overwrite` is set.
        options: How.
        resume: Go on with the sweep in `out`.
        overwrite: Remove an earlier sweep in `out` first.
        may_open_test: Members differ in nothing that could be chosen by a score, so that `final` settings may open the test split.
        on_event: Receives notes, progress, steps and evaluations; the last two name the member by its number in the sweep.

    Returns:
        The folder and its record.

    Raises:
        ConfigError: Settings, budget or folder are not usable.
        DataError: The data cannot be used, or data or encoder changed since the sweep to resume was begun.
        MissingExtraError: A search needs Optuna.
        BusyError: Another process writes to the folder.
        StoppedError: A signal asked for a stop; the state was saved.
    """
    config = load_config(*base)
    if config.final and not may_open_test:
        raise ConfigError(
            "--final: a sweep chooses on the validation split, got a wish to open the test split; expected none. Train the best settings with --final."
        )
    check_trackers(config)
    layout = SweepLayout(out)
    _check_folder(layout, resume=resume, overwrite=overwrite)
    with RunLock(layout.lock), stop_on_signals() as stop:
        record = _open(layout, config, _plain_source(source, options), resume=resume)
        sweep = _Sweep(layout, record, base, source, options, stop, on_event)
        if not resume:
            # What is wrong with settings, data or encoder costs no earlier sweep.
            sweep.check()
            if stop.signal_number is not None:
                raise StoppedError("Stopped before anything was changed.", stop.signal_number)
            clear_folder(layout.root, layout.lock, layout.record)
            # From now on the folder is a sweep's, that a call after a kill may go on with or clear.
            write_sweep(layout.record, sweep.record)
        return sweep.run()


def _plain_source(source: Sequence[Assignment] | Search, options: SweepOptions) -> dict[str, Any]:
    """The source as it is compared on resume; a storage may move."""
    if isinstance(source, Search):
        space = {name: vars(one) | {"choices": list(one.choices)} for name, one in source.space.items()}
        kind: dict[str, Any] = {"space": space, "trials": source.trials, "sampler": source.sampler, "seed": source.seed, "two": source.has_two_objectives}
    else:
        kind = {"grid": list(source)}
    plain: dict[str, Any] = json.loads(json.dumps({**kind, "halving": options.halving}))
    return plain


def _check_folder(layout: SweepLayout, *, resume: bool, overwrite: bool) -> None:
    exists = check_out_folder(layout.root, layout.lock, resume=resume, overwrite=overwrite)
    if resume and not layout.record.exists():
        raise ConfigError(f"--resume: nothing to go on from, got {str(layout.root)!r}; expected a sweep folder. Leave --resume out to start.")
    if exists and not layout.record.exists():
        raise ConfigError(f"--overwrite: this is not a sweep folder, got {str(layout.root)!r}; expected one with {layout.record.name}. It is left alone.")


def _open(layout: SweepLayout, config: RunConfig, source: dict[str, Any], *, resume: bool) -> SweepRecord:
    """The record to go on with, or a new one."""
    base = config.model_dump(mode="json")
    if resume:
        before = read_sweep(layout.record)
        unlike = [name for name, mine, its in (("settings", base, before.base), ("grid or search", source, before.source)) if mine != its]
        if unlike:
            raise ConfigError(f"--resume: the {' and '.join(unlike)} differ from the sweep's, got others; expected the same command. Repeat it, or start anew.")
        return before
    return SweepRecord(source=source, base=base, metric=config.training.best_metric, study=f"lorabel-{uuid.uuid4().hex[:12]}" if "space" in source else None)


class _Sweep:
    """One call of `run_sweep`, under the folder's lock."""

    def __init__(
        self,
        layout: SweepLayout,
        record: SweepRecord,
        base: Sequence[Mapping[str, Any]],
        source: Sequence[Assignment] | Search,
        options: SweepOptions,
        stop: StopRequest,
        on_event: EventSink,
    ) -> None:
        self.layout, self.record, self.base, self.source = layout, record, base, source
        self.options, self.stop, self.on_event = options, stop, on_event
        self.study: Study | None = None
        self.shared: Prepared | None = None
        self.weights: Mapping[str, Tensor] | None = None

    def check(self) -> None:
        """Refuse what cannot be tried.

        Raises:
            LorabelError: What is wrong with the settings of a search or of members of a grid, with data or encoder, or a search's library is missing.
        """
        if not isinstance(self.source, Search):
            self._grouped(0, self.source)
            return
        if self.source.storage is None:
            optuna_library()
        else:
            # Opened again after the folder was cleared: the storage may lie in it.
            self._open_study(self.source)
        try:
            self._prepared({})
        except BudgetError:
            # What is drawn may fit where the settings below it do not; but they say how many are drawn at a time.
            if self.options.bank_size is None:
                raise

    def run(self) -> SweepResult:
        """Draw and train until nothing is left."""
        if isinstance(self.source, Search):
            self.study = self._open_study(self.source)
        while True:
            for bank in sorted({member.bank for member in self.record.members if member.status == "planned" and member.bank is not None}):
                self._train_or_halve(bank)
            self._tell()
            if not self._draw():
                break
        if not self.record.ranked():
            reasons = [f"member {member.number}: {member.reason}" for member in self.record.members]
            raise ConfigError(f"sweep: no member could be trained, got {first_of(reasons, 3)}; expected at least one. Change the grid or the space.")
        best = self.record.ranked()[0]
        write_text(self.layout.best, self._config(best.assignment).to_yaml())
        write_sweep_report(self.layout, self.record)
        return SweepResult(self.layout.root, self.record)

    def _open_study(self, search: Search) -> Study:
        self.layout.root.mkdir(parents=True, exist_ok=True)
        storage = search.storage or f"sqlite:///{self.layout.study.resolve()}"
        study = Study(storage, search.space, search.sampler, search.seed, search.has_two_objectives, self.record.study or FIRST_NAME)
        study.drop_unfinished([member.number for member in self.record.members])
        return study

    def _config(self, assignment: Assignment) -> RunConfig:
        return load_config(*self.base, nested(assignment))

    def _prepared(self, assignment: Assignment) -> Prepared:
        """A member, ready to train; what all share is made once."""
        config = self._config(assignment)
        if config.final != self.record.base["final"]:
            raise ConfigError("final: cannot be a member's own, got one in the grid or search; expected none. Train the best settings with --final.")
        check_trackers(config)
        if self.shared is None:
            self.shared = prepare(config, self.on_event)
            self.weights = load_weights(self.shared.source)
            inputs, task = inputs_of(self.shared, self.weights), self.shared.data.task
            if self.record.inputs:
                check_inputs(self.record.inputs, inputs, "the sweep was begun")
            self.record = self.record.model_copy(update={"metric": best_metric(config, task), "task": task, "inputs": inputs})
        return prepare_like(self.shared, config)

    def _draw(self) -> bool:
        """Write down what is tried next; False where nothing is left to try."""
        first = len(self.record.members)
        if isinstance(self.source, Search):
            left = self.source.trials - first
            if left <= 0:
                return False
            assert self.study is not None
            assignments = self.study.ask(first, min(left, self._drawn_at_once()))
        elif first:
            return False
        else:
            assignments = list(self.source)
        members, groups = self._grouped(first, assignments)
        banks = self._banks(groups)
        self._write([*self.record.members, *(member.model_copy(update={"bank": banks.get(member.number)}) for member in members)])
        return True

    def _grouped(self, first: int, assignments: Sequence[Assignment]) -> tuple[list[SweepMember], list[Group]]:
        """Members without a bank yet, and those that can share one; what a search draws may be refused, a grid is refused whole."""
        members: list[SweepMember] = []
        groups: dict[str, Group] = {}
        for number, assignment in enumerate(assignments, first):
            try:
                prepared = self._prepared(assignment)
                groups.setdefault(bank_key(prepared, number), Group()).add(number, prepared.parameters.trainable)
                members.append(SweepMember(number=number, assignment=assignment, bank=None))
            except ConfigError as error:
                members.append(SweepMember(number=number, assignment=assignment, bank=None, status="refused", reason=str(error)))
        faulty = [member for member in members if member.status == "refused"]
        if faulty and not isinstance(self.source, Search):
            reasons = {member.reason for member in faulty}
            if len(reasons) == 1 and len(faulty) == len(members):
                raise ConfigError(str(faulty[0].reason))
            faults = [f"member {member.number} ({describe(member.assignment)}): {member.reason}" for member in faulty]
            raise ConfigError("\n".join(faults[:5] + ([f"… {len(faults)} members in all."] if len(faults) > 5 else [])))
        return members, list(groups.values())

    def _drawn_at_once(self) -> int:
        """Most members that a search draws at a time: as asked, or by the free memory when it began, for the settings below it, so that one that goes on draws as it did."""
        if self.options.bank_size is not None:
            return self.options.bank_size
        if self.record.bank_size is None:
            fits = members_that_fit(self._prepared({}).parameters.trainable, self._device())
            self.record = self.record.model_copy(update={"bank_size": fits})
        assert self.record.bank_size is not None
        return self.record.bank_size

    def _device(self) -> torch.device:
        assert self.shared is not None
        return self.shared.compute.device

    def _banks(self, groups: Sequence[Group]) -> dict[int, int]:
        """Member -> bank: each group cut into equal parts that fit the memory."""
        banks: dict[int, int] = {}
        bank = 1 + max((member.bank for member in self.record.members if member.bank is not None), default=-1)
        for group in groups:
            most = self._drawn_at_once() if isinstance(self.source, Search) else self.options.bank_size or members_that_fit(group.largest, self._device())
            for part in group.cut(most):
                banks |= dict.fromkeys(part, bank)
                bank += 1
        return banks

    def _train_or_halve(self, bank: int) -> None:
        """Train a bank; where memory runs out, its members go into two banks of half the size."""
        try:
            self._train(bank)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            numbers = [member.number for member in self.record.members if member.bank == bank]
            if not is_out_of_memory(error) or len(numbers) < 2:
                raise
            shutil.rmtree(self.layout.bank(bank), ignore_errors=True)
            next_bank = 1 + max(member.bank for member in self.record.members if member.bank is not None)
            moved = {number: next_bank for number in numbers[len(numbers) // 2 :]}
            self._write([member.model_copy(update={"bank": moved.get(member.number, member.bank)}) for member in self.record.members])
            self.on_event(Note(f"Memory ran out with {len(numbers)} members at once; they are trained in two banks.", is_warning=True))
        else:
            return
        for part in (bank, next_bank):
            self._train_or_halve(part)

    def _train(self, bank: int) -> None:
        """Train the members of one bank, from its checkpoint where there is one, and write down what came of them."""
        members = [member for member in self.record.members if member.bank == bank]
        prepared = [self._prepared(member.assignment) for member in members]
        assert self.weights is not None
        plans = make_plans(prepared, self.on_event)
        store = CheckpointStore(self.layout.bank(bank) / "checkpoints")
        checkpoint = store.newest(lambda text: self.on_event(Note(text, is_warning=True)))
        started = time.perf_counter()
        forget_peak_memory(self._device())
        with ExitStack() as stack:
            log = MemberLog(self.on_event, [member.number for member in members])
            for member, one in zip(members, prepared, strict=True):
                tracking = Tracking(one.config, self.layout.member(member.number).root, notes_of(member.number, self.on_event))
                log.trackings.append(stack.enter_context(tracking))

            def open_histories(positions: Sequence[Position]) -> None:
                for member, position in zip(members, positions, strict=True):
                    folder = self.layout.member(member.number)
                    log.histories.append(stack.enter_context(closing(History(folder.history, position.step))))

            self.on_event(Note(f"Bank {bank}: {len(members)} members, {max(plan.total_steps for plan in plans):,} steps."))
            leaving = halving(self.options.halving) if self.options.halving else nobody
            trained = train_bank(prepared, plans, self.weights, store, checkpoint, self.stop, log, open_histories, leaving)
            seconds = self.record.seconds + time.perf_counter() - started
            self.record = self.record.model_copy(update={"seconds": seconds})
            if self.stop.signal_number is not None:
                self._write(self.record.members)
                raise StoppedError(f"Stopped in bank {bank}; the state is saved. Go on with the same command and --resume.", self.stop.signal_number)
            done = {member.number: self._finish(member, prepared[k], trained, k, log.trackings[k]) for k, member in enumerate(members)}
        self._write([done.get(member.number, member) for member in self.record.members])
        shutil.rmtree(self.layout.bank(bank), ignore_errors=True)

    def _finish(self, member: SweepMember, prepared: Prepared, trained: TrainedBank, k: int, tracking: Tracking) -> SweepMember:
        """Keep one member's adapter and record."""
        position, layout = trained.positions[k], self.layout.member(member.number)
        if position.failure is not None:
            return member.model_copy(update={"status": "failed", "reason": position.failure, "steps": position.step})
        assert self.weights is not None
        write_text(layout.config, prepared.config.to_yaml())
        trainee = Trainee(trained.trainee.bank.select(k, k + 1), trained.trainee.updater)
        try:
            ending = replace(self.options.ending, ledger=self.options.ending.ledger or folder_beside(self.layout.root))
            logits = trained.validation_logits(k)
            record = finish(layout, prepared, trainee, trained.plans[k], position, logits, self.weights, warning_of(member.number, self.on_event), ending)
        except DataError as error:
            return member.model_copy(update={"status": "failed", "reason": str(error), "steps": position.step})
        tracking.finished(record)
        if prepared.config.data.fold is not None:
            write_held_out(layout, prepared, trainee.bank, record.rule)
        return _scored(member, record, is_pruned=position.is_pruned)

    def _tell(self) -> None:
        if self.study is None:
            return
        results = {
            member.number: TrialResult(member.value_of(self.record.metric) if member.has_scores else None, member.trainable or 0)
            for member in self.record.members
            if member.status != "planned"
        }
        self.study.tell(results)

    def _write(self, members: Sequence[SweepMember]) -> None:
        self.record = self.record.model_copy(update={"members": list(members)})
        write_sweep(self.layout.record, self.record)


def _scored(member: SweepMember, record: RunRecord, *, is_pruned: bool) -> SweepMember:
    found, test = record.metrics.validation, record.metrics.test
    return member.model_copy(
        update={
            "status": "pruned" if is_pruned else "finished",
            "accuracy": found.accuracy,
            "macro_f1": found.macro_f1,
            "loss": found.loss,
            "test_accuracy": None if test is None else test.accuracy,
            "test_macro_f1": None if test is None else test.macro_f1,
            "trainable": record.parameters.trainable,
            "steps": record.training.steps,
            "seconds": record.training.seconds,
            "alarms": record.alarms,
        }
    )
