"""The cells of a comparison: variants of one run, each with every seed. `compare` varies the method, `ablate` one setting at a time.

Cells are members of sweeps: those that may go together fill a bank, what was done is written down, and what was stopped goes on. Variants that differ in data, encoder or
machine settings, which members of one sweep share, go into sweeps of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.sweeps import SweepLayout, SweepMember, SweepRecord, read_sweep
from lorabel.config import load_config
from lorabel.errors import ConfigError, StoppedError
from lorabel.events import Event, EventSink, Note, Progress
from lorabel.search.space import Assignment, nested
from lorabel.workflows.own_process import in_own_process
from lorabel.workflows.preparation import SHARED
from lorabel.workflows.stopping import StopRequest
from lorabel.workflows.sweep import SweepOptions, run_sweep


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: Of the row it becomes.
        assignments: Dotted setting -> value, over the base settings; one per cell.
    """

    name: str
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True)
class Cell:
    """A variant with one seed or rate, as it was trained.

    Attributes:
        member: What the sweep wrote down.
        run: Its run folder.
    """

    member: SweepMember
    run: RunLayout


def train_cells(
    base: Sequence[Mapping[str, Any]],
    variants: Sequence[Variant],
    root: Path,
    options: SweepOptions,
    stop: StopRequest,
    *,
    may_open_test: bool,
    on_event: EventSink,
    apart: bool = False,
    own_process: bool = False,
    first: int = 0,
) -> dict[str, list[Cell]]:
    """Train every cell that is not there yet.

    Args:
        base: Layers of settings below all variants.
        variants: What is trained.
        root: Folder of the sweeps; what it holds of them is gone on with.
        options: How.
        stop: Whether a stop was asked for between two sweeps; within one, the sweep sees to it.
        may_open_test: `final` settings may open the test split.
        on_event: Receives notes, progress, steps and evaluations; members are numbered through all sweeps.
        apart: Each variant has a sweep of its own even where it could share a bank, so that its time is its own.
        own_process: Each sweep has a process of its own, so that its memory is, too.
        first: Number of the first member, where others came before.

    Returns:
        Variant's name -> its cells, in order; failed ones included.

    Raises:
        ConfigError: Settings or budget are not usable.
        StoppedError: A signal asked for a stop; the state was saved.
    """
    groups: dict[tuple[str, str], list[tuple[str, Assignment]]] = {}
    for variant in variants:
        for assignment in variant.assignments:
            groups.setdefault((variant.name if apart else "", _shared_key(base, assignment)), []).append((variant.name, assignment))
    found: dict[str, list[Cell]] = {variant.name: [] for variant in variants}
    for number, cells in enumerate(groups.values()):
        check_stop(stop)
        layout = SweepLayout(root / f"{number:02d}")
        on_event(Note(_announcement(cells, first)))
        assignments = [assignment for _, assignment in cells]
        work, numbered = partial(_sweep, base, assignments, layout, options, may_open_test), _numbered_from(first, on_event)
        record = in_own_process(work, stop, numbered) if own_process else work(numbered)
        for (name, _), member in zip(cells, record.members, strict=True):
            found[name].append(Cell(member, layout.member(member.number)))
        first += len(cells)
    return found


def check_stop(stop: StopRequest) -> None:
    """Leave where a stop was asked for and all that is done is saved.

    Raises:
        StoppedError: It was.
    """
    if stop.signal_number is not None:
        raise StoppedError("Stopped between two cells; what is done is saved. Go on with the same command and --resume.", stop.signal_number)


def _shared_key(base: Sequence[Mapping[str, Any]], assignment: Assignment) -> str:
    config = load_config(*base, nested(assignment))
    values = [reduce(getattr, path.split("."), cast(Any, config)) for path in SHARED]
    return json.dumps([value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in values], sort_keys=True)


def _announcement(cells: Sequence[tuple[str, Assignment]], first: int) -> str:
    """One line: `Members: full 0 to 2, lora 3 to 5`."""
    parts = []
    for name in dict.fromkeys(name for name, _ in cells):
        places = [first + place for place, (one, _) in enumerate(cells) if one == name]
        parts.append(f"{name} {places[0]}" + (f" to {places[-1]}" if len(places) > 1 else ""))
    return f"Members: {', '.join(parts)}."


def _sweep(
    base: Sequence[Mapping[str, Any]],
    assignments: Sequence[Assignment],
    layout: SweepLayout,
    options: SweepOptions,
    may_open_test: bool,
    on_event: EventSink,
) -> SweepRecord:
    """One sweep, gone on with where it was begun; a sweep whose members all failed is a result here, and an error for those who want the best one."""
    try:
        return run_sweep(base, assignments, layout.root, options, resume=layout.record.exists(), may_open_test=may_open_test, on_event=on_event).record
    except ConfigError:
        if not layout.record.exists():
            raise
        record = read_sweep(layout.record)
        if not record.members or any(member.status != "failed" for member in record.members):
            raise
        return record


def _numbered_from(first: int, on_event: EventSink) -> EventSink:
    def send(event: Event) -> None:
        on_event(event if isinstance(event, Progress) or event.member is None else replace(event, member=first + event.member))

    return send
