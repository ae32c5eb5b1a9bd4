"""The files of a comparison: its record in, tables, figures and a self-contained page out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lorabel.artifacts.compares import CompareLayout, CompareRecord
from lorabel.artifacts.store import write_text
from lorabel.config import flatten
from lorabel.reports.compare_tables import as_csv, as_latex, as_markdown, below_scores, caption, choices, compare_columns, compare_rows, row_notes
from lorabel.reports.html import pictures, template
from lorabel.reports.tables import MISSING
from lorabel.search.space import shown
from lorabel.workflows.figure_files import write_figures


def write_compare_report(layout: CompareLayout, record: CompareRecord, figures: Mapping[str, Figure], verdicts: Sequence[str] = ()) -> None:
    """Write tables, figures and report of a comparison into its own folder.

    Args:
        layout: The comparison.
        record: Finished.
        figures: File stem -> figure.
        verdicts: Sentences that stand below the table.
    """
    for kind, text in (("csv", as_csv(record)), ("md", as_markdown(record)), ("tex", as_latex(record))):
        write_text(layout.table(kind), text)
    drawn = write_figures(layout.figures, figures)
    page = template("compare.html.j2").render(
        name=layout.root.resolve().name,
        verb=layout.verb,
        record=record,
        **below_scores(compare_columns(record), compare_rows(record)),
        caption=caption(record),
        choices=choices(record),
        notes=row_notes(record),
        verdicts=verdicts,
        figures=pictures(drawn),
        trials=[(row.method, trial) for row in record.rows for trial in row.trials if len(row.trials) > 1],
        flatten=flatten,
        shown=shown,
        missing=MISSING,
    )
    write_text(layout.report, page)
