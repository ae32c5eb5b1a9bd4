"""`compare --fractions --shots`: the same comparison with less and less to train on.

Each size and draw is a comparison in a folder of its own, so that what holds for one (learning rates, banks, paired tests, kept probabilities, going on after a kill) holds for
each. All share one ledger of test openings. Learning rates are chosen anew at each size: the best rate for a hundred rows is not that for ten thousand.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorabel.artifacts.compares import CompareLayout, CompareRecord
from lorabel.artifacts.lock import RunLock
from lorabel.artifacts.sizes import SizeRow, SizesLayout, SizesRecord, read_sizes, write_sizes
from lorabel.artifacts.store import write_text
from lorabel.config import load_config
from lorabel.data.ledger import folder_beside
from lorabel.data.load import load_data
from lorabel.errors import ConfigError
from lorabel.events import EventSink, Note, ignore
from lorabel.reports.compare_tables import below_scores
from lorabel.reports.html import pictures, template
from lorabel.reports.sizes_figures import draw_sizes_figures
from lorabel.reports.sizes_tables import size_columns, size_notes, size_rows, sizes_caption, sizes_csv, sizes_latex, sizes_markdown
from lorabel.workflows.cells import check_stop
from lorabel.workflows.compare import CompareRequest, check_some_trained, plain_request, prepare_rows, run_compare, settle_rows
from lorabel.workflows.compare_methods import without_method
from lorabel.workflows.figure_files import write_figures
from lorabel.workflows.out_folder import check_out_folder, clear_folder
from lorabel.workflows.size_points import size_points
from lorabel.workflows.stopping import stop_on_signals

DRAWS = 10
# What the comparisons of all sizes have in common; openings of the test split grow.
_SHARED = ("encoder", "task", "judged", "rows_judged", "reference", "compared_by", "compared_name", "test_openings")


@dataclass(frozen=True)
class SizesRequest:
    """Which sizes.

    Attributes:
        fractions: Percent of each class, above 0 and up to 100; one draw each.
        shots: Rows of each class, at least 1.
        draws: Draws of each number of shots.
    """

    fractions: tuple[float, ...] = ()
    shots: tuple[int, ...] = ()
    draws: int = DRAWS


@dataclass(frozen=True)
class SizesResult:
    """What was made.

    Attributes:
        root: The folder.
        record: Its record.
    """

    root: Path
    record: SizesRecord


@dataclass(frozen=True)
class _Size:
    protocol: Literal["fraction", "shots"]
    size: float
    draw: int

    @property
    def name(self) -> str:
        return f"{self.protocol}-{self.size:g}-{self.draw:02d}"

    @property
    def settings(self) -> dict[str, Any]:
        limit = {"fraction_percent": self.size} if self.protocol == "fraction" else {"shots": int(self.size)}
        return {"data": {**limit, "draw_seed": self.draw}}


def run_sizes(
    base: Sequence[Mapping[str, Any]],
    request: CompareRequest,
    sizes: SizesRequest,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_event: EventSink = ignore,
) -> SizesResult:
    """Compare at each size.

    Args:
        base: Layers of settings below all rows; `final` opens the test split once for every cell of every size.
        request: What is compared.
        sizes: With how much to train on.
        out: The folder; it must not exist unless `resume` or `overwrite` is set.
        resume: Go on with what is in `out`.
        overwrite: Remove what an earlier call left in `out` first.
        on_event: Receives notes, progress, steps and evaluations.

    Returns:
        The folder and its record.

    Raises:
        ConfigError: Sizes, names, settings or folder are not usable.
        DataError: No method could be trained at any size.
        StoppedError: A signal asked for a stop; the state was saved.
        LorabelError: Whatever `run_compare` raises; finished sizes stay.
    """
    wanted = _wanted(sizes)
    config = load_config(*without_method(base))
    if any(value is not None for value in (config.data.fraction_percent, config.data.shots)):
        raise ConfigError("data.fraction_percent, data.shots: set beside --fractions or --shots, got both; expected one. Leave the settings out.")
    rows_asked = settle_rows(base, request)
    layout = SizesLayout(out)
    exists = check_out_folder(out, layout.lock, resume=resume, overwrite=overwrite)
    if (resume or exists) and not layout.record.exists():
        flag = "--resume" if resume else "--overwrite"
        raise ConfigError(f"{flag}: no comparison by size is here, got {str(out)!r}; expected a folder with {layout.record.name}. It is left alone.")
    if not resume:
        # What is wrong with data, encoder or budget is said before anything is written; each comparison will say what it found.
        prepare_rows([*base, wanted[0].settings], rows_asked, request, ignore)
    with RunLock(layout.lock), stop_on_signals() as stop:
        plain = {**_plain(sizes), "rows": plain_request(request, rows_asked), "base": config.model_dump(mode="json")}
        record = _open(layout, SizesRecord(status="running", request=plain, source=str(config.data.source)), resume=resume)
        # Of a finished one too: its rows are put together anew, and a kill meanwhile must not leave some of them as all.
        record = record.model_copy(update={"status": "running", "points": []})
        rows: list[SizeRow] = []
        # Rates that failed leave out members, so some numbers may have no member; none has two.
        most_members = sum(row.is_trained for row in rows_asked) * (request.seeds + request.trials_trained)
        for place, size in enumerate(wanted):
            check_stop(stop)
            on_event(Note(f"Size {place + 1} of {len(wanted)}: {size.name}."))
            one, found = _compare_at(size, base, request, layout, place * most_members, on_event)
            rows += found
            record = record.model_copy(update={"rows": list(rows), **{name: getattr(one, name) for name in _SHARED}})
            write_sizes(layout.record, record)
        check_some_trained(rows)
        record = record.model_copy(update={"status": "finished", "points": size_points(record, out)})
        write_sizes(layout.record, record)
        write_sizes_report(layout, record)
    return SizesResult(out, record)


def _compare_at(
    size: _Size, base: Sequence[Mapping[str, Any]], request: CompareRequest, layout: SizesLayout, first: int, on_event: EventSink
) -> tuple[CompareRecord, list[SizeRow]]:
    """The comparison at one size, gone on with where it was begun, and its rows."""
    own, folder = [*base, size.settings], layout.comparison(size.name)
    # A kill can leave a folder without a record; nothing in it was finished.
    begun = CompareLayout(folder).record.exists()
    if folder.exists() and not begun:
        shutil.rmtree(folder)
    ledger = folder_beside(layout.root)
    found = run_compare(own, request, folder, resume=begun, ledger=ledger, keeps_failures=True, first_member=first, on_event=on_event).record
    train_rows = len(load_data(load_config(*without_method(own)).data).splits["train"])
    if size.protocol == "shots" and train_rows < size.size * len(found.labels):
        on_event(Note(f"Not every class has {size.size:g} rows: {size.name} is {train_rows:,} rows in all.", is_warning=True))
    facts = {"protocol": size.protocol, "size": size.size, "draw": size.draw, "train_rows": train_rows, "folder": str(folder.relative_to(layout.root))}
    return found, [SizeRow(**row.model_dump(), **facts) for row in found.rows]


def _wanted(sizes: SizesRequest) -> list[_Size]:
    """The sizes in rising order, checked."""
    if not sizes.fractions and not sizes.shots:
        raise ConfigError("--fractions, --shots: no size, got neither; expected at least one. Use --fractions 1,10,100.")
    for percent in sizes.fractions:
        if not (math.isfinite(percent) and 0 < percent <= 100):
            raise ConfigError(f"--fractions: not a share, got {percent:g}; expected percent above 0 and up to 100. Use 1,3,10,30,100.")
    for flag, values in (("--shots", sizes.shots), ("--draws", (sizes.draws,))):
        for value in values:
            if value < 1:
                raise ConfigError(f"{flag}: too few, got {value}; expected at least 1. Give a whole number above 0.")
    for flag, given in (("--fractions", sizes.fractions), ("--shots", sizes.shots)):
        if len(set(given)) < len(given):
            raise ConfigError(f"{flag}: a size named twice, got {','.join(f'{one:g}' for one in given)}; expected each once. Remove one.")
    found = [_Size("fraction", percent, 0) for percent in sorted(sizes.fractions)]
    return found + [_Size("shots", shots, draw) for shots in sorted(sizes.shots) for draw in range(sizes.draws)]


def _plain(request: SizesRequest) -> dict[str, Any]:
    """A request as JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(request).items()}


def _open(layout: SizesLayout, fresh: SizesRecord, *, resume: bool) -> SizesRecord:
    """The record to go on with, or a new one in a cleared folder."""
    if resume:
        before = read_sizes(layout.record)
        unlike = sorted(name for name, value in fresh.request.items() if before.request.get(name) != value)
        if unlike:
            raise ConfigError(
                f"--resume: the comparison in the folder is another, got other {', '.join(unlike)}; expected the same command. Repeat it, or start anew."
            )
        return before
    clear_folder(layout.root, layout.lock, layout.record)
    write_sizes(layout.record, fresh)
    return fresh


def write_sizes_report(layout: SizesLayout, record: SizesRecord) -> None:
    """Write tables, figures and report into the folder.

    Args:
        layout: Of the folder.
        record: Finished.
    """
    for kind, text in (("csv", sizes_csv(record)), ("md", sizes_markdown(record)), ("tex", sizes_latex(record))):
        write_text(layout.table(kind), text)
    drawn = write_figures(layout.figures, draw_sizes_figures(record))
    page = template("sizes.html.j2").render(
        name=layout.root.resolve().name,
        record=record,
        **below_scores(size_columns(record), size_rows(record)),
        caption=sizes_caption(record),
        notes=size_notes(record),
        figures=pictures(drawn),
    )
    write_text(layout.report, page)
