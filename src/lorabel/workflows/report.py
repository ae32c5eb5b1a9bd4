"""`report`: records in, figures and a self-contained page out; reads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabel.artifacts.history import read_history
from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.records import read_record
from lorabel.artifacts.store import write_bytes, write_text
from lorabel.errors import ArtifactError
from lorabel.reports.figures import draw_run_figures, png_bytes, svg_bytes
from lorabel.reports.html import render_report
from lorabel.reports.tables import COLUMNS, NamedRun, comparison_rows, markdown_table


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
    history = read_history(RunLayout(runs[0]).history)
    first = named[0].record
    figures = draw_run_figures(history, first.metrics.test or first.metrics.validation, "test" if first.metrics.test else "validation")
    write_text(out, render_report(named, figures))
    rows = comparison_rows(named)
    return ReportResult(out, COLUMNS, rows, markdown_table(COLUMNS, rows), named)


def write_run_report(layout: RunLayout) -> None:
    """Write figures and report of a run into its own folder.

    Args:
        layout: A run whose record and history are written.
    """
    record = read_record(layout.record)
    result, split = (record.metrics.test, "test") if record.metrics.test else (record.metrics.validation, "validation")
    figures = draw_run_figures(read_history(layout.history), result, split)
    for name, figure in figures.items():
        write_bytes(layout.figures / f"{name}.png", png_bytes(figure))
        write_bytes(layout.figures / f"{name}.svg", svg_bytes(figure))
    write_text(layout.report, render_report([NamedRun(layout.root.name, record)], figures))


def _read(path: Path) -> NamedRun:
    layout = RunLayout(path)
    if not layout.record.exists():
        raise ArtifactError(f"{path}: not a finished run, got no record.json; expected a run folder. Finish it with lorabel train --resume.")
    return NamedRun(path.resolve().name, read_record(layout.record))
