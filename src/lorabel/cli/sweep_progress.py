"""Progress and results of a sweep: a live table of members in a terminal, a line per evaluation round elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from types import TracebackType
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table

from lorabel.artifacts.sweeps import SweepRecord
from lorabel.cli.output import err, out, print_note
from lorabel.events import Evaluated, Event, Note, Progress, StepDone, under
from lorabel.reports.tables import percent
from lorabel.search.space import shown, varied

if TYPE_CHECKING:
    from lorabel.workflows.repeats import Spread

_SECONDS_BETWEEN_LINES = 15.0
_ROWS = 24


class SweepPrinter:
    """An event sink that shows how the members do; use as a context manager.

    Args:
        is_quiet: Show nothing but warnings.
    """

    def __init__(self, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._live = None if is_quiet or not err.is_terminal else Live(console=err, refresh_per_second=4, transient=True)
        self._steps: dict[int, StepDone] = {}
        self._scores: dict[int, list[Evaluated]] = {}
        self._last_line = 0.0
        self._phase = ""

    def __enter__(self) -> SweepPrinter:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Note):
            if event.member is not None:
                event = replace(event, text=under(f"Member {event.member}", event.text))
            print_note(event, is_quiet=self._is_quiet)
            return
        if isinstance(event, StepDone):
            self._steps[event.member] = event
            self._phase = ""
        elif isinstance(event, Evaluated):
            self._scores.setdefault(event.member, []).append(event)
        elif isinstance(event, Progress):
            self._phase = f"{event.phase} {event.done:,}" + (f" of {event.total:,}" if event.total else "")
        if self._is_quiet:
            return
        if self._live is not None:
            self._live.update(self._table())
        elif isinstance(event, StepDone):
            self._line(event)

    def _line(self, step: StepDone) -> None:
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        scored = self._best()
        best = "" if scored is None else f"  best {percent(scored.accuracy)} (member {scored.member})"
        err.print(f"step {step.step}/{step.total_steps}  {len(self._steps)} members begun  {step.samples_per_second:.0f} samples/s{best}")

    def _best(self) -> Evaluated | None:
        scored = [event for events in self._scores.values() for event in events if isfinite(event.accuracy)]
        return max(scored, key=lambda event: event.accuracy, default=None)

    def _table(self) -> Table:
        """Members by their best score so far."""
        table = Table(box=None, pad_edge=False, title=self._phase or None, title_justify="left", title_style="dim")
        for name in ("member", "step", "loss", "learning rate", "validation", "best"):
            table.add_column(name, justify="right")
        finite = {member: [event.accuracy for event in events if isfinite(event.accuracy)] for member, events in self._scores.items()}
        best = {member: max(values) for member, values in finite.items() if values}
        order = sorted(self._steps, key=lambda member: (-best.get(member, 0.0), member))
        for member in order[:_ROWS]:
            step, scores = self._steps[member], self._scores.get(member)
            now = "" if not scores else percent(scores[-1].accuracy) if isfinite(scores[-1].accuracy) else "not finite"
            top = percent(best[member]) if member in best else ""
            table.add_row(str(member), f"{step.step}/{step.total_steps}", f"{step.loss:.4f}", f"{step.learning_rate:.2e}", now, top)
        if len(order) > _ROWS:
            table.caption = f"… {len(order) - _ROWS} more"
        return table


def print_sweep(record: SweepRecord) -> None:
    """The members, best first, and a warning for each alarm."""
    names = varied([member.assignment for member in record.members])
    table = Table(box=None, pad_edge=False)
    table.add_column("member", justify="right")
    for name in names:
        table.add_column(name.rpartition(".")[2])
    for name in (record.accuracy_name, "macro-F1", "trainable", "outcome"):
        table.add_column(name, justify="left" if name == "outcome" else "right")
    for member in record.ranked():
        values = [shown(member.assignment.get(name)) for name in names]
        scores = [percent(member.accuracy or 0.0), percent(member.macro_f1 or 0.0), f"{member.trainable:,}"]
        table.add_row(str(member.number), *values, *scores, "left early" if member.status == "pruned" else member.status)
    for member in record.members:
        if not member.has_scores:
            table.add_row(str(member.number), *(shown(member.assignment.get(name)) for name in names), "", "", "", member.status)
    out.print(table)
    for alarm in record.alarms():
        out.print(f"warning: {alarm}.", markup=False)


def print_spread(split: str, scores: Mapping[str, Spread], accuracy_name: str) -> None:
    """Mean and deviation of a split's scores over members."""
    names = {"accuracy": accuracy_name, "macro_f1": "macro-F1"}
    parts = [f"{names[name]} {percent(score.mean)} ± {100 * score.deviation:.2f}" for name, score in scores.items()]
    out.print(f"{split}  {', '.join(parts)}  over {len(scores['accuracy'].values)} members")
