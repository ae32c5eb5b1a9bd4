"""The report of a sweep: its record and the members' histories in, figures and a self-contained page out."""

from __future__ import annotations

from collections import Counter

from lorabel.artifacts.history import read_history
from lorabel.artifacts.store import write_text
from lorabel.artifacts.sweeps import SweepLayout, SweepRecord
from lorabel.reports.html import pictures, template
from lorabel.reports.sweep_figures import draw_sweep_figures
from lorabel.reports.tables import duration, percent
from lorabel.search.space import describe, shown, varied
from lorabel.search.study import importances
from lorabel.workflows.figure_files import write_figures


def write_sweep_report(layout: SweepLayout, record: SweepRecord) -> None:
    """Write figures and report of a sweep into its own folder.

    Args:
        layout: The sweep.
        record: At least one member has scores.
    """
    ranked = record.ranked()
    names = varied([member.assignment for member in record.members])
    everywhere = [name for name in names if all(name in member.assignment for member in ranked)]
    shares = importances([member.assignment for member in ranked], [member.value_of(record.metric) for member in ranked], everywhere) if everywhere else None
    histories = {member.number: read_history(layout.member(member.number).history) for member in ranked}
    figures = write_figures(layout.figures, draw_sweep_figures(ranked, record.metric, record.accuracy_name, names, shares, histories))
    page = template("sweep.html.j2").render(
        name=layout.root.resolve().name,
        record=record,
        ranked=ranked,
        without=[member for member in record.members if not member.has_scores],
        best=ranked[0],
        varied=names,
        counts=Counter(member.status for member in record.members),
        figures=pictures(figures).values(),
        has_importances=shares is not None,
        describe=describe,
        shown=shown,
        short_name=lambda name: name.rpartition(".")[2],
        percent=percent,
        duration=duration,
    )
    write_text(layout.report, page)
