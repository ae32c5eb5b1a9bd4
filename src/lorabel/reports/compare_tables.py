"""The table of a comparison: the same rows in the terminal, in Markdown, LaTeX and HTML, and as numbers in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

from lorabel.artifacts.compares import Compared, CompareRecord, CompareRow, Gap, Interval, SplitScores
from lorabel.data.types import TaskKind
from lorabel.reports.tables import MISSING, duration, latex_table, markdown_table, megabytes, signed_points, text_table

_BEFORE = ("row", "trainable", "file", "seeds")
_AFTER = ("ECE, %", "difference", "p", "training", "samples/s", "memory")
# A printed page is narrower than a screen; these stand in a table of their own there.
_COSTS = frozenset({"file", "seeds", "training", "samples/s", "memory"})
# Of several labels per text; with one there are accuracy and macro-F1.
_LABEL_SCORES = {"macro_f1": "macro-F1, %", "micro_f1": "micro-F1, %", "lrap": "LRAP, %", "accuracy": "exact, %"}
# These have their intervals beside them; the narrow table has that of the compared score alone.
_WITH_INTERVAL = frozenset({"accuracy", "macro_f1"})
_INTERVAL = "95 % interval"
_SCORES = tuple(SplitScores.model_fields)
# Columns of CSV tables, as `score_numbers` and `tested_numbers` fill them.
SCORE_NAMES = tuple(f"{score}{part}" for score in _SCORES for part in ("", "_low", "_high", "_deviation"))
TESTED_NAMES = ("difference", "difference_low", "difference_high", "p_value", "raw_p_value")
_TESTS = {
    "accuracy": "exact McNemar tests on the same rows, twice their mean over seeds",
    "macro_f1": "paired bootstrap over the same rows and over seeds",
}
SPREAD_OVER_SEEDS = "Mean over seeds ± their standard deviation; 95 % bootstrap intervals over rows and seeds, over few seeds as wide as Student's."
# Below this chance the difference is called one.
LEVEL = 0.05


def scores_shown(task: TaskKind, compared_by: Compared) -> dict[str, str]:
    """The scores that a table shows, the compared one first.

    Args:
        task: One label per text, or several.
        compared_by: The score that differences are of.

    Returns:
        Name of the score -> heading.
    """
    known = {"accuracy": "accuracy, %", "macro_f1": "macro-F1, %"} if task == "single_label" else _LABEL_SCORES
    return {compared_by: known[compared_by], **known}


def _has_interval(score: str, compared_by: Compared, *, is_narrow: bool) -> bool:
    return score == compared_by if is_narrow else score in _WITH_INTERVAL


def score_headings(task: TaskKind, compared_by: Compared, *, is_narrow: bool = False) -> list[str]:
    """Headings of what `score_cells` gives for the scores that a table shows.

    Args:
        task: One label per text, or several.
        compared_by: The score that differences are of.
        is_narrow: Only the compared score has its interval.
    """
    headings = []
    for name, heading in scores_shown(task, compared_by).items():
        headings += [heading, _INTERVAL] if _has_interval(name, compared_by, is_narrow=is_narrow) else [heading]
    return headings


def compare_columns(record: CompareRecord, *, is_narrow: bool = False) -> list[str]:
    """Headings of the table.

    Args:
        record: The comparison.
        is_narrow: Only the compared score has its interval.
    """
    return [*_BEFORE, *score_headings(record.task, record.compared_by, is_narrow=is_narrow), *_AFTER]


def compare_rows(record: CompareRecord, *, is_narrow: bool = False) -> list[list[str]]:
    """One row of text per row of the comparison, in the order of `compare_columns`.

    Args:
        record: The comparison.
        is_narrow: Only the compared score has its interval.
    """
    return [_cells(record, row, is_narrow=is_narrow) for row in record.rows]


def _cells(record: CompareRecord, row: CompareRow, *, is_narrow: bool) -> list[str]:
    scores = record.shown(row)
    if scores is None:
        return [row.method, *[MISSING] * 3, row.status, *[MISSING] * (len(compare_columns(record, is_narrow=is_narrow)) - 5)]
    return [
        row.method,
        MISSING if row.parameters is None else f"{row.parameters.trainable:,}",
        MISSING if row.bytes is None else megabytes(row.bytes),
        str(row.seeds),
        *score_cells(scores, record.task, record.compared_by, row.seeds, is_narrow=is_narrow),
        MISSING if row.ece is None else f"{100 * row.ece:.1f}",
        shown_difference(row.difference, is_reference=row.method == record.reference),
        p_value(row.p_value),
        MISSING if row.seconds is None else duration(row.seconds),
        MISSING if row.samples_per_second is None else f"{row.samples_per_second:,.0f}",
        MISSING if row.peak_memory_bytes is None else megabytes(row.peak_memory_bytes),
    ]


def score_cells(scores: SplitScores, task: TaskKind, compared_by: Compared, times: int, *, is_narrow: bool = False) -> list[str]:
    """The scores that a table shows, and intervals, in the order of `score_headings`.

    Args:
        scores: Of a row.
        task: One label per text, or several.
        compared_by: The score that differences are of.
        times: How often the row was repeated.
        is_narrow: Only the compared score has its interval.
    """
    cells = []
    for name in scores_shown(task, compared_by):
        score: Interval = getattr(scores, name)
        cells.append(with_deviation(score, times))
        if _has_interval(name, compared_by, is_narrow=is_narrow):
            cells.append(f"{100 * score.low:.2f}–{100 * score.high:.2f}")
    return cells


def below_scores(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, Any]:
    """A page's `columns` and `rows`, cells as lists of lines, an interval below its score.

    With columns of their own for intervals, the table is wider than most screens.

    Args:
        columns: Headings.
        rows: Cells of each row.
    """
    return {"columns": _below_scores(columns, columns), "rows": [_below_scores(columns, cells) for cells in rows]}


def _below_scores(columns: Sequence[str], cells: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = []
    for name, cell in zip(columns, cells, strict=True):
        if name != _INTERVAL:
            found.append([cell])
        elif cell != MISSING:
            found[-1].append(cell)
    return found


def with_deviation(score: Interval, times: int) -> str:
    """`92.88 ± 0.21`, or `92.88` of what was done once."""
    return f"{100 * score.mean:.2f}" + (f" ± {100 * score.deviation:.2f}" if times > 1 else "")


def shown_difference(gap: Gap | None, *, is_reference: bool) -> str:
    """`+0.41 (−0.12 to +0.95)` in points; the reference says that it is."""
    if is_reference:
        return "reference"
    if gap is None:
        return MISSING
    return f"{signed_points(gap.mean)} ({signed_points(gap.low)} to {signed_points(gap.high)})"


def p_value(value: float | None) -> str:
    """`0.012`, `< 0.001`, or a dash."""
    return MISSING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def caption(record: CompareRecord, *, is_printed: bool = False) -> str:
    """What the table shows, in full sentences.

    Args:
        record: The comparison.
        is_printed: Of the table of scores of a printed page; what training costs stands in another.
    """
    parts = [
        f"Scores on the {record.judged} split ({record.rows_judged:,} rows), encoder {record.encoder}.",
        f"{SPREAD_OVER_SEEDS} ECE: expected calibration error.",
        f"Differences in {record.compared_name}, in points, and p-values are to {record.reference}: {_TESTS[record.compared_by]}, Holm's correction.",
    ]
    if not is_printed:
        parts.append(_about_costs(record))
    if record.task == "multi_label":
        parts.append(
            "Texts have several labels. Exact: the share of texts whose labels are all found and no other (subset accuracy); LRAP: label ranking average precision; "
            f"{record.metric.replace('_f1', '-F1')} chose rates and checkpoints."
        )
    heads = {row.method: head_in_words(row) for row in record.rows if "head" in row.settings}
    if len(set(heads.values())) > 1:
        parts.append("Heads differ: " + ", ".join(f"{method} {head}" for method, head in heads.items()) + ".")
    parts.append(about_rates(record.rows))
    at_an_end = [row.method for row in record.rows if row.stopped_at_an_end]
    if at_an_end:
        parts.append(f"The best is the lowest or the highest that was tried for {', '.join(at_an_end)}: more trials may find a better one.")
    if record.judged == "validation":
        parts.append("The validation split also chose checkpoints, settings and temperatures, so these scores lean to the high side and ECE to the low one.")
    else:
        parts.append(f"This test split was opened {record.test_openings:,} times so far.")
    return " ".join(parts)


def head_in_words(row: CompareRow) -> str:
    """What a trained row's head is and reads, as captions say it."""
    head = row.settings["head"]
    return f"{head['kind']} on {'all tokens' if head['pooling'] == 'mean' else 'the first token'}"


def about_rates(rows: Sequence[CompareRow]) -> str:
    """How learning rates were chosen.

    Args:
        rows: Of one comparison, or of several.
    """
    trials = max((len(row.trials) for row in rows), default=0)
    if trials > 1:
        return f"Each method's learning rate is the best of {trials} on the validation split with one seed."
    if trials == 1:
        return "Each method was trained at its default learning rate; no other was tried."
    # Of an ablation, whose rows are one method at the rate of the settings.
    rates = sorted({f"{row.settings['learning_rate']:g}" for row in rows if "learning_rate" in row.settings})
    return f"The learning rate is {' or '.join(rates)}." if rates else "No learning rate was used."


def row_notes(record: CompareRecord) -> list[str]:
    """What is wrong with single rows, a sentence each: those that failed, and seeds whose outcome is no classifier."""
    return notes_of([(row.method, row) for row in record.rows])


def notes_of(named: Sequence[tuple[str, CompareRow]]) -> list[str]:
    """`row_notes` of rows under the names they go by.

    Args:
        named: Name and row.
    """
    failed = [f"{name} {row.status}: {row.reason}" for name, row in named if row.reason is not None]
    return failed + [f"{name}, {alarm}" for name, row in named for alarm in row.alarms]


def _about_costs(record: CompareRecord) -> str:
    its = (
        "row's own process, with all seeds that were trained together"
        if record.own_processes
        else "process, with all seeds that were trained together and what it had loaded before"
    )
    return f"Training time is of one seed. Memory is the largest of the {its}."


def choices(record: CompareRecord) -> list[str]:
    """Why settings that were left open are what they are, a sentence each, with the rows that it is said of."""
    rows: dict[str, list[str]] = {}
    for row in record.rows:
        for reason in row.settings.get("reasons", []):
            rows.setdefault(reason, []).append(row.method)
    return [f"{', '.join(names)}. {reason}" for reason, names in rows.items()]


def _below(record: CompareRecord) -> str:
    """The caption, and a line for each choice and note."""
    return "\n".join([caption(record), *choices(record), *row_notes(record)])


def as_text(record: CompareRecord) -> str:
    """The table in columns of equal width, and its caption; narrow, as terminals are."""
    return f"{text_table(compare_columns(record, is_narrow=True), compare_rows(record, is_narrow=True))}\n{_below(record)}\n"


def as_markdown(record: CompareRecord) -> str:
    """The table in Markdown with its caption."""
    return f"{markdown_table(compare_columns(record), compare_rows(record))}\n{_below(record)}\n"


def as_latex(record: CompareRecord) -> str:
    """Two tables in LaTeX: scores and tests, and what the rows cost."""
    names = compare_columns(record)
    tables = []
    for kept, text in (
        ([name not in _COSTS for name in names], " ".join([caption(record, is_printed=True), *row_notes(record)])),
        (
            [name in _COSTS or name == "row" for name in names],
            f"Size of the file that is kept, number of seeds, and what training takes. {_about_costs(record)}",
        ),
    ):
        columns, *rows = (list(compress(cells, kept)) for cells in (names, *compare_rows(record)))
        tables.append(latex_table(columns, rows, text))
    return "\n".join(tables)


def as_csv(record: CompareRecord) -> str:
    """Numbers without units or rounding, one line per row; what is missing is empty."""
    names = ["row", "kind", "status", "seeds", "trainable", "bytes", "learning_rate"]
    for split in ("validation", "test"):
        names += [f"{split}_{name}" for name in SCORE_NAMES]
    names += [*TESTED_NAMES, "ece", "seconds", "samples_per_second", "peak_memory_bytes"]
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(names)
    for row in record.rows:
        writer.writerow(_numbers(row))
    return sheet.getvalue()


def _numbers(row: CompareRow) -> Sequence[object]:
    values: list[object] = [row.method, row.kind, row.status, row.seeds]
    values += [None if row.parameters is None else row.parameters.trainable, row.bytes, row.settings.get("learning_rate")]
    for scores in (row.validation, row.test):
        values += score_numbers(scores)
    return [*values, *tested_numbers(row), row.ece, row.seconds, row.samples_per_second, row.peak_memory_bytes]


def score_numbers(scores: SplitScores | None) -> list[float | None]:
    """Values of the columns `SCORE_NAMES`, None for what is missing."""
    values: list[float | None] = []
    for score in (None if scores is None else getattr(scores, name) for name in _SCORES):
        values += [None] * 4 if score is None else [score.mean, score.low, score.high, score.deviation]
    return values


def tested_numbers(row: CompareRow) -> list[float | None]:
    """Values of the columns `TESTED_NAMES`, None for what is missing."""
    gap = [None] * 3 if row.difference is None else [row.difference.mean, row.difference.low, row.difference.high]
    return [*gap, row.p_value, row.raw_p_value]
