"""Scores by size of the training split: one line per protocol, size and row, the same in the terminal, in Markdown, LaTeX and HTML, and as numbers in CSV."""

from __future__ import annotations

import csv
import io

from lorabel.artifacts.sizes import SizePoint, SizesRecord
from lorabel.reports.compare_tables import (
    SCORE_NAMES,
    TESTED_NAMES,
    about_rates,
    head_in_words,
    notes_of,
    p_value,
    score_cells,
    score_headings,
    score_numbers,
    shown_difference,
    tested_numbers,
)
from lorabel.reports.tables import MISSING, latex_table, markdown_table, text_table

_BEFORE = ("size", "training rows", "row", "draws")
_AFTER = ("difference", "p")


def size_columns(record: SizesRecord, *, is_narrow: bool = False) -> list[str]:
    """Headings of the table.

    Args:
        record: Of the sizes.
        is_narrow: Only the compared score has its interval.
    """
    return [*_BEFORE, *score_headings(record.task, record.compared_by, is_narrow=is_narrow), *_AFTER]


def size_rows(record: SizesRecord, *, is_narrow: bool = False) -> list[list[str]]:
    """One row of text per point, in the order of `size_columns`.

    Args:
        record: Of the sizes.
        is_narrow: Only the compared score has its interval.
    """
    return [_cells(point, record, is_narrow=is_narrow) for point in record.points]


def _cells(point: SizePoint, record: SizesRecord, *, is_narrow: bool) -> list[str]:
    size = f"{point.size:g} %" if point.protocol == "fraction" else f"{point.size:g} per class"
    draws = str(point.draws) if point.draws == point.drawn else f"{point.draws} of {point.drawn}"
    start = [size, f"{point.train_rows:,}", point.method, draws]
    if point.scores is None:
        return [*start, *[MISSING] * (len(size_columns(record, is_narrow=is_narrow)) - len(start))]
    times = point.draws if point.drawn > 1 else point.seeds
    return [
        *start,
        *score_cells(point.scores, record.task, record.compared_by, times, is_narrow=is_narrow),
        shown_difference(point.difference, is_reference=point.method == record.reference),
        p_value(point.p_value),
    ]


def sizes_caption(record: SizesRecord) -> str:
    """What the table shows."""
    lean = " It also chose checkpoints and temperatures, so these scores lean to the high side." if record.judged == "validation" else ""
    tests = (
        ""
        if len({row.method for row in record.rows}) < 2
        else (
            f" Differences in {record.compared_name}, in points, and p-values are to {record.reference} at the same size: of one draw as the comparison tested them, "
            "of several by paired bootstrap over draws and rows; Holm's correction over the rows of a size."
        )
    )
    return (
        f"Scores on the {record.judged} split ({record.rows_judged:,} rows), encoder {record.encoder}.{lean} Smaller shares lie within larger ones, and so do shots of one "
        "draw. ± is the standard deviation over draws, of one draw over seeds; 95 % bootstrap intervals over the same and over rows; over few of them as wide as Student's."
        f"{tests} {about_rates(record.rows)}{_about_heads(record)}{_about_losses(record)}"
    )


def _about_heads(record: SizesRecord) -> str:
    """Which heads stand at which sizes, where they are not all one: what is left open may be settled by the number of rows."""
    rows: dict[str, list[int]] = {}
    for row in record.rows:
        if "head" in row.settings:
            rows.setdefault(head_in_words(row), []).append(row.train_rows)
    if len(rows) < 2:
        return ""
    said = []
    for head, of in rows.items():
        span = f"{min(of):,}" if min(of) == max(of) else f"{min(of):,} to {max(of):,}"
        said.append(f"{head} with {span} rows")
    return f" Heads differ: {', '.join(said)}."


def _about_losses(record: SizesRecord) -> str:
    """At which sizes the loss has a term that it has not at others: a curve bends there for that reason."""
    rows: dict[bool, list[int]] = {}
    for row in record.rows:
        if "contrastive_alpha" in row.settings:
            rows.setdefault(bool(row.settings["contrastive_alpha"]), []).append(row.train_rows)
    return f" The loss has a contrastive term with up to {max(rows[True]):,} rows." if len(rows) == 2 else ""


def size_notes(record: SizesRecord) -> list[str]:
    """What is wrong with single rows, a sentence each: those that failed, and seeds whose outcome is no classifier."""
    return notes_of([(f"{row.folder.rpartition('/')[2]}, {row.method}", row) for row in record.rows])


def sizes_markdown(record: SizesRecord) -> str:
    """The table in Markdown with its caption."""
    return f"{markdown_table(size_columns(record), size_rows(record))}\n{_below(record)}\n"


def sizes_text(record: SizesRecord) -> str:
    """The table in columns of equal width, with its caption; narrow, as terminals are."""
    return f"{text_table(size_columns(record, is_narrow=True), size_rows(record, is_narrow=True))}\n{_below(record)}\n"


def sizes_latex(record: SizesRecord) -> str:
    """The table in LaTeX, for the booktabs package."""
    return latex_table(size_columns(record), size_rows(record), " ".join([sizes_caption(record), *size_notes(record)]))


def _below(record: SizesRecord) -> str:
    """The caption, and a line for each note."""
    return "\n".join([sizes_caption(record), *size_notes(record)])


def sizes_csv(record: SizesRecord) -> str:
    """Numbers without units or rounding, one line per size, draw and row; what is missing is empty. Differences and p-values are of the single draw."""
    names = ["protocol", "size", "draw", "train_rows", "row", "status", "seeds", "learning_rate", *SCORE_NAMES, *TESTED_NAMES]
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(names)
    for row in record.rows:
        start = [row.protocol, row.size, row.draw, row.train_rows, row.method, row.status, row.seeds, row.settings.get("learning_rate")]
        writer.writerow([*start, *score_numbers(row.scores_of(record.judged)), *tested_numbers(row)])
    return sheet.getvalue()
