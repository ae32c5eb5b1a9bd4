"""Figures of scores by size of the training split."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lorabel.artifacts.compares import Interval
from lorabel.artifacts.sizes import SizePoint, SizesRecord
from lorabel.reports.figures import COLOURS, STYLE, new_axes, percent_axis, short

_SIZES = {"fraction": "share of the training rows", "shots": "rows per class"}


def draw_sizes_figures(record: SizesRecord) -> dict[str, Figure]:
    """A figure per protocol: file stem -> figure."""
    points = [point for point in record.points if point.scores is not None]
    with mpl.rc_context(STYLE):
        return {one: _figure(record, one, [point for point in points if point.protocol == one]) for one in dict.fromkeys(point.protocol for point in points)}


def _figure(record: SizesRecord, protocol: str, points: Sequence[SizePoint]) -> Figure:
    """The compared score over training rows, with its interval."""
    name = f"{record.compared_name[0].upper()}{record.compared_name[1:]}"
    figure, axes = new_axes(f"{name} by {_SIZES[protocol]} ({record.judged}, 95 % intervals)", "training rows", "percent", height=4.2)
    for place, method in enumerate(dict.fromkeys(point.method for point in record.points)):
        line = sorted((point for point in points if point.method == method), key=lambda point: point.train_rows)
        if not line:
            continue
        rows, colour = [point.train_rows for point in line], COLOURS[place % len(COLOURS)]
        low, mean, high = 100 * np.array([_ends(getattr(point.scores, record.compared_by)) for point in line], dtype=np.float64).T
        axes.fill_between(rows, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(rows, mean, color=colour, marker="o", linewidth=1.8, label=short(method))
    axes.set_xscale("log")
    marks = sorted({point.train_rows for point in points})
    axes.set_xticks(marks, [f"{mark:,}" for mark in marks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    percent_axis(axes)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _ends(score: Interval) -> tuple[float, float, float]:
    return score.low, score.mean, score.high
