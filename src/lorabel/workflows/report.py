"""`report`: records in, figures and a self-contained page out; reads no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lorabel.artifacts.history import read_history
from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.records import RunRecord, read_record
from lorabel.artifacts.store import write_text
from lorabel.errors import ArtifactError
from lorabel.reports.figures import draw_comparison_figures, draw_run_figures, svg_bytes
from lorabel.reports.html import render_report
from lorabel.reports.tables import COLUMNS, NamedRun, comparison_rows, markdown_table
from lorabel.workflows.figure_files import write_figures

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ReportResult:
    """What `report` made.

    Attributes:
        report: The HTML file.
        columns: Of the table.
        rows: One per run.
        markdown: The table as Markdown.
        runs: The runs in order.
    """

    report: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    markdown: str
    runs: list[NamedRun]


def run_report(runs: Sequence[Path], out: Path | None = None) -> ReportResult:
    """Write a report of one run, or of several side by side.

    Args:
        runs: Run folders.
        out: The HTML file; `report.html` in the first run, or in the current folder where there are several.

    Returns:
        File and table.

    Raises:
        ArtifactError: A folder is not a finished run.
    """
    named = [_read(path) for path in runs]
    if out is None:
        out = RunLayout(runs[0]).report if len(runs) == 1 else Path("report.html")
    histories = [read_history(RunLayout(path).history) for path in runs]
    figures = [_as_svg(_figures(run.record, history)) for run, history in zip(named, histories, strict=True)]
    write_text(out, render_report(named, figures, _as_svg(_together(named, histories)) if len(named) > 1 else {}))
    rows = comparison_rows(named)
    return ReportResult(out, COLUMNS, rows, markdown_table(COLUMNS, rows), named)


def write_run_report(layout: RunLayout) -> None:
    """Write figures and report of a run into its own folder.

    Args:
        layout: A run whose record and history are written.
    """
    record = read_record(layout.record)
    drawn = write_figures(layout.figures, _figures(record, read_history(layout.history)))
    write_text(layout.report, render_report([NamedRun(layout.root.resolve().name, record)], [drawn], {}))


def _as_svg(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    return {name: svg_bytes(figure) for name, figure in figures.items()}


def _figures(record: RunRecord, history: History) -> dict[str, Figure]:
    """Figures of one run; of the test split where it was opened."""
    test = record.metrics.test
    return draw_run_figures(history, test or record.metrics.validation, "test" if test else "validation")


def _together(runs: Sequence[NamedRun], histories: Sequence[History]) -> dict[str, Figure]:
    """Figures of several runs; of the test split where all of them opened it."""
    names = [run.name if [other.name for other in runs].count(run.name) == 1 else f"{run.name} ({place})" for place, run in enumerate(runs, 1)]
    tests = {name: run.record.metrics.test for name, run in zip(names, runs, strict=True)}
    opened = {name: test for name, test in tests.items() if test is not None}
    is_test = len(opened) == len(runs)
    results = opened if is_test else {name: run.record.metrics.validation for name, run in zip(names, runs, strict=True)}
    return draw_comparison_figures(results, dict(zip(names, histories, strict=True)), "test" if is_test else "validation")


def _read(path: Path) -> NamedRun:
    layout = RunLayout(path)
    if not layout.record.exists():
        raise ArtifactError(f"{path}: not a finished run, got no record.json; expected a run folder. Finish it with lorabel train --resume.")
    return NamedRun(path.resolve().name, read_record(layout.record))
