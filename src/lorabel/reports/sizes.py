"""Scores by size of the training split: one line per protocol, size and row, and a figure per protocol."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lorabel.artifacts.sizes import SizeRow, SizesRecord
from lorabel.reports.figures import COLOURS, STYLE, new_axes, percent_axis, short
from lorabel.reports.tables import MISSING, markdown_table, text_table
from lorabel.stats import mean_and_spread, mean_interval

COLUMNS = ("size", "training rows", "row", "draws", "accuracy, %", "95 % interval", "macro-F1, %")
_TITLES = {"fraction": "Accuracy by share of the training rows", "shots": "Accuracy by rows per class"}


@dataclass(frozen=True)
class SizePoint:
    """A row of the comparison at one size, over its draws.

    Attributes:
        protocol: `fraction` or `shots`.
        size: Percent, or rows per class.
        method: Name of the row.
        train_rows: Of the first draw.
        draws: With scores.
        drawn: That were made, failed ones included.
        accuracy: Mean over draws, in [0, 1]; None where all failed.
        deviation: Sample standard deviation over draws.
        low: Lower end of the 95 % interval: Student's over draws where there are several, that of the comparison where there is one.
        high: Upper end.
        macro_f1: Mean over draws.
    """

    protocol: str
    size: float
    method: str
    train_rows: int
    draws: int
    drawn: int
    accuracy: float | None = None
    deviation: float = 0.0
    low: float = 0.0
    high: float = 0.0
    macro_f1: float | None = None


def size_points(record: SizesRecord) -> list[SizePoint]:
    """All points, in the record's order.

    Args:
        record: Of the sizes.
    """
    groups: dict[tuple[str, float, str], list[SizeRow]] = {}
    for row in record.rows:
        groups.setdefault((row.protocol, row.size, row.method), []).append(row)
    return [_point(key, rows, record.judged) for key, rows in groups.items()]


def _point(key: tuple[str, float, str], rows: Sequence[SizeRow], judged: str | None) -> SizePoint:
    scores = [one for one in (row.test if judged == "test" else row.validation for row in rows) if one is not None]
    if not scores:
        return SizePoint(*key, train_rows=rows[0].train_rows, draws=0, drawn=len(rows))
    means = [one.accuracy.mean for one in scores]
    mean, deviation = mean_and_spread(means)
    low, high = mean_interval(means) if len(means) > 1 else (scores[0].accuracy.low, scores[0].accuracy.high)
    f1 = mean_and_spread([one.macro_f1.mean for one in scores])[0]
    return SizePoint(*key, rows[0].train_rows, len(scores), len(rows), mean, deviation, max(0.0, low), min(1.0, high), f1)


def _cells(point: SizePoint) -> list[str]:
    size = f"{point.size:g} %" if point.protocol == "fraction" else f"{point.size:g} per class"
    draws = str(point.draws) if point.draws == point.drawn else f"{point.draws} of {point.drawn}"
    start = [size, f"{point.train_rows:,}", point.method, draws]
    if point.accuracy is None or point.macro_f1 is None:
        return [*start, *[MISSING] * 3]
    spread = f" ± {100 * point.deviation:.2f}" if point.draws > 1 else ""
    return [*start, f"{100 * point.accuracy:.2f}{spread}", f"{100 * point.low:.2f}–{100 * point.high:.2f}", f"{100 * point.macro_f1:.2f}"]


def sizes_caption(record: SizesRecord) -> str:
    """What the table shows."""
    lean = " It also chose checkpoints and learning rates, so these scores lean to the high side." if record.judged == "validation" else ""
    return (
        f"Scores on the {record.judged} split.{lean} Smaller shares lie within larger ones, and so do shots of one draw. "
        "± is the standard deviation over draws, the interval of several draws Student's; of one draw it is a bootstrap over rows and seeds."
        f"{_about_heads(record)}"
    )


def _about_heads(record: SizesRecord) -> str:
    """Which heads stand at which sizes, where they are not all one: what is left open may be settled by the number of rows."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row in record.rows:
        if "head" in row.settings:
            rows.setdefault((row.settings["head"]["kind"], row.settings["head"]["pooling"]), []).append(row.train_rows)
    if len(rows) < 2:
        return ""
    said = []
    for (kind, pooling), of in rows.items():
        span = f"{min(of):,}" if min(of) == max(of) else f"{min(of):,} to {max(of):,}"
        said.append(f"{kind} on {'all tokens' if pooling == 'mean' else 'the first token'} with {span} rows")
    return f" Heads differ: {', '.join(said)}."


def sizes_markdown(record: SizesRecord) -> str:
    """The table in Markdown with its caption."""
    return f"{markdown_table(COLUMNS, [_cells(point) for point in size_points(record)])}\n{sizes_caption(record)}\n"


def sizes_text(record: SizesRecord) -> str:
    """The table in columns of equal width, with its caption."""
    return f"{text_table(COLUMNS, [_cells(point) for point in size_points(record)])}\n{sizes_caption(record)}\n"


def sizes_csv(record: SizesRecord) -> str:
    """Numbers without units or rounding, one line per size, draw and row; what is missing is empty."""
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(["protocol", "size", "draw", "train_rows", "row", "status", "seeds", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "p_value"])
    for row in record.rows:
        scores = row.test if record.judged == "test" else row.validation
        values = [None] * 4 if scores is None else [scores.accuracy.mean, scores.accuracy.low, scores.accuracy.high, scores.macro_f1.mean]
        writer.writerow([row.protocol, row.size, row.draw, row.train_rows, row.method, row.status, row.seeds, *values, row.p_value])
    return sheet.getvalue()


def draw_sizes_figures(record: SizesRecord) -> dict[str, Figure]:
    """A figure per protocol: file stem -> figure."""
    points = [point for point in size_points(record) if point.accuracy is not None]
    with mpl.rc_context(STYLE):
        return {one: _figure(record, one, points) for one in dict.fromkeys(point.protocol for point in points)}


def _figure(record: SizesRecord, protocol: str, points: Sequence[SizePoint]) -> Figure:
    own = [point for point in points if point.protocol == protocol]
    figure, axes = new_axes(f"{_TITLES[protocol]} ({record.judged}, 95 % intervals)", "training rows", "percent", height=4.2)
    for place, method in enumerate(dict.fromkeys(row.method for row in record.rows)):
        line = sorted((point for point in own if point.method == method), key=lambda point: point.train_rows)
        if not line:
            continue
        rows, colour = [point.train_rows for point in line], COLOURS[place % len(COLOURS)]
        low, mean, high = 100 * np.array([(point.low, point.accuracy, point.high) for point in line], dtype=np.float64).T
        axes.fill_between(rows, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(rows, mean, color=colour, marker="o", linewidth=1.8, label=short(method))
    axes.set_xscale("log")
    marks = sorted({point.train_rows for point in own})
    axes.set_xticks(marks, [f"{mark:,}" for mark in marks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    percent_axis(axes)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
