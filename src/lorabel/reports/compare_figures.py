"""Figures of a comparison: score against parameters, learning curves, reliability, and where each row's confusions, or errors by label, differ from the reference's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from lorabel.artifacts.compares import Compared, CompareRecord, CompareRow, CurvePoint, Interval
from lorabel.reports.figures import COLOURS, GREY, MANY_CLASSES, STYLE, epoch_axis, new_axes, parameters_axis, percent_axis, short
from lorabel.reports.tables import signed_points

_DOTS_PER_INCH = 150
# More panels than this do not fit a page; the record holds all matrices.
_MOST_PANELS = 12
_MARKERS = {"method": "o", "baseline": "s"}


def draw_compare_figures(record: CompareRecord) -> dict[str, Figure]:
    """All figures of a comparison.

    Args:
        record: The comparison, finished.

    Returns:
        File stem -> figure.
    """
    with mpl.rc_context(STYLE):
        figures = {"parameters": parameters_figure(record)}
        if any(curve for row in record.rows for curve in row.curves):
            figures["curves"] = curves_figure(record)
        binned = [row for row in record.rows if row.reliability]
        if binned:
            figures["reliability"] = reliability_figure(record, binned)
        for name, field, draw in (("confusions", "confusion", confusions_figure), ("labels", "label_errors", labels_figure)):
            known = {row.method: row for row in record.rows if getattr(row, field) is not None}
            reference, others = known.pop(record.reference, None), list(known.values())
            if others and reference is not None:
                figures[name] = draw(record, reference, others[:_MOST_PANELS])
    return figures


def parameters_figure(record: CompareRecord) -> Figure:
    """The compared score with its interval over trained parameters, which span orders of magnitude; a row without any is a line across."""
    figure, axes = new_axes(
        f"{record.compared_name[0].upper()}{record.compared_name[1:]} against trained parameters ({record.judged}, 95 % intervals)",
        "trained parameters",
        "percent",
        height=4.2,
    )
    handles = []
    for place, row in enumerate(record.rows):
        scores = record.shown(row)
        if scores is None or row.parameters is None:
            continue
        colour = COLOURS[place % len(COLOURS)]
        score: Interval = getattr(scores, record.compared_by)
        low, mean, high = (100 * value for value in (score.low, score.mean, score.high))
        if row.parameters.trainable == 0:
            axes.axhline(mean, color=colour, linestyle="--", linewidth=1.4)
            handles.append(Line2D([], [], color=colour, linestyle="--", label=f"{short(row.method)} (none)"))
            continue
        size, marker = float(row.parameters.trainable), _MARKERS[row.kind]
        axes.plot([size, size], [low, high], color=colour, linewidth=2.2, solid_capstyle="round", alpha=0.55)
        axes.plot(size, mean, color=colour, marker=marker, markersize=7, linestyle="none")
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=short(row.method)))
    axes.margins(0.12, 0.1)
    parameters_axis(axes)
    percent_axis(axes)
    axes.legend(handles=handles, frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def curves_figure(record: CompareRecord) -> Figure:
    """The compared score on the validation split over epochs: each seed thin, their mean bold."""
    by = record.compared_by
    figure, axes = new_axes(f"Validation {record.compared_name} while training", "epoch", "percent", height=4.2)
    for place, row in enumerate(record.rows):
        curves = [curve for curve in row.curves if curve]
        if not curves:
            continue
        colour = COLOURS[place % len(COLOURS)]
        if len(curves) > 1:
            for curve in curves:
                axes.plot(*_points(curve, by), color=colour, linewidth=0.8, alpha=0.35)
        # A seed that stopped early has fewer evaluations; the mean goes as far as all seeds do.
        shared = min(len(curve) for curve in curves)
        epochs, scores = zip(*(_points(curve[:shared], by) for curve in curves), strict=True)
        axes.plot(epochs[0], np.mean(scores, axis=0), color=colour, linewidth=1.9, marker="o", markersize=4, label=short(row.method))
    epoch_axis(axes)
    percent_axis(axes)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _points(curve: Sequence[CurvePoint], score: Compared) -> tuple[list[float], list[float]]:
    """Epochs, and a score in percent."""
    return [point.epoch for point in curve], [100 * getattr(point, score) for point in curve]


def _panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """So many panels in rows; what is left of the last row stays empty."""
    panels: list[Axes] = list(np.asarray(figure.subplots(-(-count // columns), columns, squeeze=False), dtype=object).ravel())
    for axes in panels[count:]:
        axes.set_axis_off()
    return panels[:count]


def reliability_figure(record: CompareRecord, rows: Sequence[CompareRow]) -> Figure:
    """Per row, the share of right answers against probability, over all seeds; a calibrated one lies on the diagonal. Marks grow with the share of rows in their bin.

    Args:
        record: The comparison.
        rows: The rows to show.
    """
    lines = -(-len(rows) // 4)
    columns = -(-len(rows) // lines)
    figure = Figure(figsize=(max(5.0, columns * 2.5), lines * 2.6 + 0.7), dpi=_DOTS_PER_INCH, layout="constrained")
    colours = {row.method: COLOURS[place % len(COLOURS)] for place, row in enumerate(record.rows)}
    for place, (axes, row) in enumerate(zip(_panels(figure, len(rows), columns), rows, strict=True)):
        bins = row.reliability or []
        whole = sum(one.n for one in bins)
        axes.plot([0, 1], [0, 100], color=GREY, linestyle="--", linewidth=1.1)
        right = [100 * one.accuracy for one in bins]
        axes.plot([one.confidence for one in bins], right, color=colours[row.method], linewidth=1.0, alpha=0.4)
        axes.scatter(
            [one.confidence for one in bins], right, s=[10 + 110 * one.n / whole for one in bins], color=colours[row.method], alpha=0.8, zorder=3, clip_on=False
        )
        axes.set_title(short(row.method), fontsize=9.5)
        if row.ece is not None:
            axes.text(0.05, 0.93, f"ECE {100 * row.ece:.1f} %" + (", mean" if row.seeds > 1 else ""), transform=axes.transAxes, va="top", fontsize=8.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-2, 104)
        axes.tick_params(labelsize=8, labelleft=place % columns == 0)
    of_labels = record.task == "multi_label"
    figure.supxlabel(f"probability of the {'label' if of_labels else 'answer'}; marks grow with their share of rows", fontsize=9)
    figure.supylabel("label is there, percent" if of_labels else "right, percent", fontsize=9)
    figure.suptitle(f"Reliability ({record.judged})", fontsize=11, fontweight="bold")
    return figure


def confusions_figure(record: CompareRecord, reference: CompareRow, others: Sequence[CompareRow]) -> Figure:
    """Per row, the share of each true class that goes to each predicted one, less the reference's share, in points.

    Args:
        record: The comparison.
        reference: Its reference row.
        others: The rows to show.
    """
    classes = len(record.labels)
    is_small = classes <= MANY_CLASSES // 2
    columns = min(math.ceil(math.sqrt(len(others))), 3 if classes <= MANY_CLASSES else 2)
    lines = -(-len(others) // columns)
    side = max(2.9, min(6.5, 0.5 * classes + 1.2))
    figure = Figure(figsize=(columns * side + 1.8, lines * side + 0.9), dpi=_DOTS_PER_INCH, layout="constrained")
    panels = _panels(figure, len(others), columns)
    gaps = [_shares(row) - _shares(reference) for row in others]
    largest = max(1.0, max(float(np.abs(gap).max()) for gap in gaps))
    image = None
    for place, axes in enumerate(panels):
        image = _panel(axes, gaps[place], largest, short(others[place].method), is_small=is_small)
        names = [short(label) for label in record.labels] if classes <= MANY_CLASSES else []
        size = 8 if is_small else 6
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=size)
        axes.set_yticks(range(len(names)), names if place % columns == 0 else [""] * len(names), fontsize=size)
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("true", fontsize=9)
    figure.suptitle(f"Confusions less those of {short(record.reference)}\n({record.judged}, points of the true class)", fontsize=11, fontweight="bold")
    if image is not None:
        figure.colorbar(image, ax=panels, shrink=0.75)
    return figure


def labels_figure(record: CompareRecord, reference: CompareRow, others: Sequence[CompareRow]) -> Figure:
    """Per row and label, how many texts it was missed in and how many were given it wrongly, less the reference's; of many labels those with the largest differences.

    Args:
        record: The comparison, of texts with several labels.
        reference: Its reference row.
        others: The rows to show.
    """
    gaps = np.stack([_label_errors(row) - _label_errors(reference) for row in others])  # (rows, C, 2)
    shown = np.sort(np.argsort(-np.abs(gaps).max(axis=(0, 2)), kind="stable")[:MANY_CLASSES])
    largest = max(1.0, float(np.abs(gaps).max()))
    lines = -(-len(others) // 4)
    columns = -(-len(others) // lines)
    figure = Figure(figsize=(max(5.4, columns * 1.7 + 2.6), lines * (0.3 * len(shown) + 0.8) + 1.0), dpi=_DOTS_PER_INCH, layout="constrained")
    panels = _panels(figure, len(others), columns)
    names = [short(record.labels[place]) for place in shown]
    image = None
    for place, axes in enumerate(panels):
        image = _panel(axes, gaps[place][shown], largest, short(others[place].method), is_small=True)
        axes.set_aspect("auto")
        axes.set_xticks(range(2), ["missed", "wrong"], fontsize=8)
        axes.set_yticks(range(len(names)), names if place % columns == 0 else [""] * len(names), fontsize=8)
    of = "" if len(shown) == len(record.labels) else f"; the {len(shown)} of {len(record.labels):,} labels that differ most"
    figure.supxlabel("above 0: more errors than the reference", fontsize=9)
    figure.suptitle(
        f"Missed and wrong labels less those of {short(reference.method)}\n({record.judged}, number of texts, of {record.rows_judged:,}{of})",
        fontsize=11,
        fontweight="bold",
    )
    if image is not None:
        figure.colorbar(image, ax=panels, shrink=0.75, aspect=35)
    return figure


def _label_errors(row: CompareRow) -> NDArray[np.float64]:
    """Texts in which each label is missed and wrong, (C, 2)."""
    return np.array([[one.missed, one.wrong] for one in row.label_errors or []], dtype=np.float64)


def _shares(row: CompareRow) -> NDArray[np.float64]:
    """Percent of each true class by predicted class, (C, C)."""
    counts = np.asarray(row.confusion, dtype=np.float64)
    return np.asarray(100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _panel(axes: Axes, gap: NDArray[np.float64], largest: float, title: str, *, is_small: bool) -> mpl.image.AxesImage:
    """One row's matrix; blue where it goes more often than the reference, red where less."""
    image = axes.imshow(gap, cmap="RdBu", vmin=-largest, vmax=largest)
    axes.grid(visible=False)
    axes.set_title(title, fontsize=9.5)
    if is_small:
        for (i, j), value in np.ndenumerate(gap):
            colour = "white" if abs(value) > 0.6 * largest else "#1f2937"
            axes.text(j, i, signed_points(value / 100, 1), ha="center", va="center", fontsize=7.5, color=colour)
    return image
