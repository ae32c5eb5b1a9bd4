"""`compare`: methods and baselines on the same splits and seeds, each at its own learning rate, with intervals and paired tests.

The order is: check everything, fit the baselines, try learning rates (one seed, validation split), train every method with every seed at its best rate, then put the rows
together. Each of these goes on where it was stopped, and the rows follow from what lies on disk: a comparison that was killed ends at the same table.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabel.artifacts.compares import CompareLayout, CompareRecord, CompareRow, RateTrial, write_compare
from lorabel.artifacts.lock import RunLock
from lorabel.config import load_config, merge
from lorabel.data.ledger import TestLedger, folder_beside
from lorabel.errors import BudgetError, ConfigError, DataError
from lorabel.events import EventSink, Note, ignore
from lorabel.reports.compare_figures import draw_compare_figures
from lorabel.search.space import Assignment, nested
from lorabel.workflows.cells import Cell, Variant, train_cells
from lorabel.workflows.compare_baselines import fit_baselines, settle_descriptions
from lorabel.workflows.compare_folder import check_compare_folder, each_once, new_record, open_compare
from lorabel.workflows.compare_methods import AskedRow, asked_rows, without_method
from lorabel.workflows.compare_report import write_compare_report
from lorabel.workflows.compare_rows import score_rows, source_of_baseline, source_of_cells
from lorabel.workflows.finishing import Ending
from lorabel.workflows.preparation import Prepared, prepare, prepare_like
from lorabel.workflows.stopping import StopRequest, stop_on_signals
from lorabel.workflows.sweep import SweepOptions
from lorabel.workflows.tracking import check_trackers

# The default rate of a method, one lower and one higher.
RATE_TRIALS = 3
# Rates that are tried lie half a decade apart.
_RATE_STEP = math.sqrt(10)


@dataclass(frozen=True)
class CompareRequest:
    """What is compared.

    Attributes:
        methods: Rows: registered methods, with options after colons where they are not the method's own (`prefix:length=40`), and baselines; those that are always shown
            are added.
        seeds: Seeds of each method, from the settings' own on.
        rate_trials: Learning rates tried per method, its default among them; 1 means no search, `RATE_TRIALS` is what the command line asks for.
        reference: Row that the others are tested against; None for the first.
        descriptions: Class -> text for baselines that read them; None for the class names.
    """

    methods: tuple[str, ...]
    seeds: int = 1
    rate_trials: int = 1
    reference: str | None = None
    descriptions: Mapping[str, str] | None = None

    @property
    def trials_trained(self) -> int:
        """Members that the search of a method's rate trains; none where there is no search."""
        return self.rate_trials if self.rate_trials > 1 else 0


@dataclass(frozen=True)
class CompareResult:
    """What a comparison made.

    Attributes:
        root: Its folder.
        record: Its record.
    """

    root: Path
    record: CompareRecord


def run_compare(
    base: Sequence[Mapping[str, Any]],
    request: CompareRequest,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    ledger: Path | None = None,
    keeps_failures: bool = False,
    first_member: int = 0,
    on_event: EventSink = ignore,
) -> CompareResult:
    """Compare methods and baselines.

    Args:
        base: Layers of settings below all rows, as `load_config` takes them; `final` opens the test split, once for every cell.
        request: What is compared.
        out: The folder; it must not exist unless `resume` or `overwrite` is set.
        resume: Go on with the comparison in `out`.
        overwrite: Remove an earlier comparison in `out` first.
        ledger: Folder of the ledger of test openings; None for the one that `out` is in.
        keeps_failures: A comparison in which no method could be trained is one of several, and is finished like them.
        first_member: Number of the first member, where other comparisons came before.
        on_event: Receives notes, progress, steps and evaluations; members are numbered through all cells.

    Returns:
        The folder and its record.

    Raises:
        ConfigError: Names, settings, budget or folder are not usable.
        DataError: The data cannot be used, changed since the comparison was begun, or no method could be trained on it.
        BusyError: Another process writes to the folder.
        StoppedError: A signal asked for a stop; the state was saved.
    """
    rows = settle_rows(base, request)
    config = load_config(*without_method(base))
    layout = CompareLayout(out)
    check_compare_folder(layout, resume=resume, overwrite=overwrite)
    on_event = each_once(on_event)
    prepared, rates, descriptions = prepare_rows(base, rows, request, on_event)
    base = without_method(base)
    with RunLock(layout.lock), stop_on_signals() as stop:
        record = open_compare(layout, new_record(config, plain_request(request, rows), request.reference or rows[0].name, prepared), resume=resume)
        return _Compare(layout, record, base, request, rows, prepared, stop, on_event, ledger or folder_beside(out), first_member).run(
            rates, descriptions, keeps_failures=keeps_failures
        )


def settle_rows(base: Sequence[Mapping[str, Any]], request: CompareRequest) -> list[AskedRow]:
    """Check what needs no data.

    Args:
        base: Layers of settings, with options of methods.
        request: What is compared.

    Returns:
        The rows, those that are always there included.

    Raises:
        ConfigError: Names, counts or settings are not usable.
    """
    check_trackers(load_config(*without_method(base)))
    rows = asked_rows(request.methods, base)
    for flag, value, advice in (("--seeds", request.seeds, "Leave it out for one"), ("--rate-trials", request.rate_trials, "Use 1 for no search")):
        if value < 1:
            raise ConfigError(f"{flag}: too few, got {value}; expected at least 1. {advice}.")
    rate = merge(*base).get("optimizer", {}).get("learning_rate")
    if rate is not None:
        raise ConfigError(
            f"optimizer.learning_rate: one rate for unlike methods, got {rate}; expected none, because each method has its own. Leave it out: each one's is searched for."
        )
    names = [row.name for row in rows]
    if request.reference is not None and request.reference not in names:
        raise ConfigError(f"--reference: no such row, got {request.reference!r}; expected one of {', '.join(names)}. Add it to --methods, or leave it out.")
    return rows


def plain_request(request: CompareRequest, rows: Sequence[AskedRow]) -> dict[str, Any]:
    """The request as JSON values, each row with its options."""
    return {**dataclasses.asdict(request), "methods": {row.name: row.assignment for row in rows}}


def prepare_rows(
    base: Sequence[Mapping[str, Any]], rows: Sequence[AskedRow], request: CompareRequest, on_event: EventSink
) -> tuple[Prepared, dict[str, list[float]], tuple[str, ...]]:
    """Check what needs the data and the encoder.

    Args:
        base: Layers of settings below all rows.
        rows: As they were settled.
        request: What is compared.
        on_event: Receives notes and progress.

    Returns:
        Data and encoder, ready; the learning rates to try for each row; a description of each class.

    Raises:
        BudgetError: Methods that do not fit, reported together.
        LorabelError: Whatever else is wrong with settings, data or encoder.
    """
    base = without_method(base)
    prepared: Prepared | None = None
    rates: dict[str, list[float]] = {}
    faults = []
    for row in rows:
        if not row.is_trained:
            continue
        own = load_config(*base, nested(row.assignment))
        try:
            one = prepare(own, on_event) if prepared is None else prepare_like(prepared, own)
        except BudgetError as error:
            faults.append(f"{row.name}: {error}")
            continue
        prepared = prepared or one
        rates[row.name] = spread_rates(one.method.learning_rate_for(one.head), request.rate_trials)
    if faults:
        raise BudgetError("\n".join(faults))
    assert prepared is not None, "a comparison without methods was refused before"
    return prepared, rates, settle_descriptions(prepared.data.labels.names, request.descriptions)


def check_some_trained(rows: Sequence[CompareRow]) -> None:
    """Refuse a comparison whose methods all failed.

    Args:
        rows: Of one comparison, or of several.

    Raises:
        DataError: No method could be trained.
    """
    reasons = [row.reason for row in rows if row.kind == "method" and row.status == "failed"]
    if len(reasons) == sum(row.kind == "method" for row in rows):
        raise DataError(f"compare: no method could be trained, got {reasons[0]}; expected at least one. Lower the learning rates with --rate-trials 5.")


def spread_rates(default: float, trials: int) -> list[float]:
    """Learning rates to try: the default, then half a decade below, above, a decade below, and so on; lowest first.

    Args:
        default: The method's own.
        trials: How many, at least 1.
    """
    steps = [0, *(sign * distance for distance in range(1, trials) for sign in (-1, 1))][:trials]
    return [float(f"{default * _RATE_STEP**step:.3g}") if step else default for step in sorted(steps)]


class _Compare:
    """One call of `run_compare`, under the folder's lock."""

    def __init__(
        self,
        layout: CompareLayout,
        record: CompareRecord,
        base: Sequence[Mapping[str, Any]],
        request: CompareRequest,
        rows: Sequence[AskedRow],
        prepared: Prepared,
        stop: StopRequest,
        on_event: EventSink,
        ledger: Path,
        first_member: int,
    ) -> None:
        self.layout, self.record, self.base, self.request = layout, record, base, request
        self.rows, self.prepared, self.stop, self.on_event = rows, prepared, stop, on_event
        self.assignments = {row.name: row.assignment for row in rows}
        self.ledger, self.first_member = ledger, first_member

    def run(self, rates: Mapping[str, Sequence[float]], descriptions: tuple[str, ...], *, keeps_failures: bool) -> CompareResult:
        """Do what is left to do and write the record."""
        baselines = [row.name for row in self.rows if not row.is_trained]
        fit_baselines(baselines, self.layout.baseline, self.prepared, descriptions, self.ledger, self.on_event)
        trials = self._try(rates)
        cells = self._train(trials)
        sources = [
            source_of_cells(row.name, cells.get(row.name, []), trials[row.name])
            if row.is_trained
            else source_of_baseline(row.name, self.layout.baseline(row.name))
            for row in self.rows
        ]
        if not keeps_failures:
            check_some_trained([source.row for source in sources])
        rows = score_rows(sources, self.record, self.layout.root)
        test = self.record.split_digests.get("test")
        openings = TestLedger(self.ledger).count(test) if test else 0
        self.record = self.record.model_copy(update={"status": "finished", "rows": rows, "test_openings": openings})
        write_compare(self.layout.record, self.record)
        write_compare_report(self.layout, self.record, draw_compare_figures(self.record))
        return CompareResult(self.layout.root, self.record)

    def _try(self, rates: Mapping[str, Sequence[float]]) -> dict[str, list[RateTrial]]:
        """Train each method at each of its rates with one seed; the best validation score chooses, of equals the nearest to the method's own."""
        if not self.request.trials_trained:
            return {name: [RateTrial(learning_rate=rate, score=None, is_chosen=True) for rate in ones] for name, ones in rates.items()}
        variants = [Variant(name, tuple(self._at(name, rate) for rate in ones)) for name, ones in rates.items()]
        base = [*self.base, {"final": False}]
        cells = train_cells(
            base,
            variants,
            self.layout.rates,
            SweepOptions(ending=Ending(verb="compare")),
            self.stop,
            may_open_test=False,
            on_event=self.on_event,
            first=self.first_member,
        )
        for cell in (cell for group in cells.values() for cell in group):
            # A trial is there for its score; adapters of full fine-tuning would fill disks.
            shutil.rmtree(cell.run.adapter, ignore_errors=True)
        return {name: self._chosen(rates[name], cells[name]) for name in rates}

    def _chosen(self, rates: Sequence[float], cells: Sequence[Cell]) -> list[RateTrial]:
        scores = [cell.member.value_of(self.record.metric) if cell.member.has_scores else None for cell in cells]
        # The default lies in the middle. Small validation splits have many equals, of which it was the best on other data.
        ranked = [(score, -abs(place - len(rates) // 2), -place) for place, score in enumerate(scores) if score is not None]
        chosen = -max(ranked)[2] if ranked else None
        return [RateTrial(learning_rate=rate, score=score, is_chosen=place == chosen) for place, (rate, score) in enumerate(zip(rates, scores, strict=True))]

    def _train(self, trials: Mapping[str, Sequence[RateTrial]]) -> dict[str, list[Cell]]:
        """Every method whose rate is known, with every seed."""
        first = self.prepared.config.training.seed
        variants = []
        for name, tried in trials.items():
            rate = next((trial.learning_rate for trial in tried if trial.is_chosen), None)
            if rate is None:
                self.on_event(Note(f"{name}: training failed at every learning rate that was tried; its row stays empty.", is_warning=True))
                continue
            variants.append(Variant(name, tuple({**self._at(name, rate), "training.seed": first + turn} for turn in range(self.request.seeds))))
        ending = Ending(verb="compare", opened_by="compare", ledger=self.ledger, keeps_probabilities=True)
        # Trials were members, too: a note about one of them is not the same note about another.
        after_trials = self.first_member + len(trials) * self.request.trials_trained
        options = SweepOptions(ending=ending)
        return train_cells(self.base, variants, self.layout.cells, options, self.stop, may_open_test=True, on_event=self.on_event, first=after_trials)

    def _at(self, name: str, rate: float) -> Assignment:
        return {**self.assignments[name], "optimizer.learning_rate": rate}
