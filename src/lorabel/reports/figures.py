"""Figures as PNG and SVG: loss, accuracy, confusion matrix, classification report and reliability of a run; scores and curves of several runs.

Drawn with the object interface (no global state) and without dates or random ids, so that the same record gives the same bytes.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lorabel.artifacts.history import evaluations
from lorabel.evaluation import EvalResult

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d9752b", "#2f8f6b", "#6b7280"
# As many as there are methods and baselines: no two rows of a comparison share one.
COLOURS = (BLUE, ORANGE, GREEN, "#8b5cf6", "#b91c4b", "#0e7490", "#a16207", GREY, "#111827", "#38bdf8", "#84cc16", "#f472b6", "#4c1d95", "#fbbf24")
_LONGEST_LABEL = 22
_DOTS_PER_INCH = 150
MANY_CLASSES = 20
_MOST_NAMED_CLASSES = 100
# More groups of bars than this cannot be read on a page.
_MOST_BARS = 40
# More names than this would hide the curves, or have no room beside them.
_MOST_NAMES_INSIDE, _MOST_NAMES_BESIDE = 12, 20
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.hashsalt": "lorabel",
    "svg.fonttype": "none",
    "text.parse_math": False,  # Names of classes and runs are the user's: "$5 or $6" is no formula.
}


def draw_run_figures(history: Sequence[Mapping[str, Any]], result: EvalResult, split: str) -> dict[str, Figure]:
    """All figures of one run.

    Args:
        history: Rows of `metrics.jsonl`.
        result: Scores of the split to show.
        split: Its name, for titles.

    Returns:
        File stem -> figure.
    """
    with mpl.rc_context(STYLE):
        return {
            "loss": loss_curve(history),
            "accuracy": accuracy_curve(history),
            **({} if result.confusion_matrix is None else {"confusion_matrix": confusion_figure(result, result.confusion_matrix, split)}),
            "classification_report": report_figure(result, split),
            **({} if result.reliability is None else {"reliability": reliability_figure(result, split)}),
        }


def draw_comparison_figures(results: Mapping[str, EvalResult], histories: Mapping[str, Sequence[Mapping[str, Any]]], split: str) -> dict[str, Figure]:
    """Figures of several runs side by side.

    Args:
        results: Run name -> scores of the split to show, in order.
        histories: Run name -> rows of `metrics.jsonl`.
        split: Its name, for titles.

    Returns:
        File stem -> figure.
    """
    with mpl.rc_context(STYLE):
        return {"scores": scores_figure(results, split), "curves": curves_figure(histories)}


def scores_figure(results: Mapping[str, EvalResult], split: str) -> Figure:
    """Accuracy of each run with its 95 % interval."""
    figure, axes = new_axes(f"Accuracy ({split}, 95 % intervals)", "percent", "", height=max(2.2, 0.42 * len(results) + 1.4))
    for place, result in enumerate(results.values()):
        low, high = (100 * bound for bound in result.interval["accuracy"])
        colour = COLOURS[place % len(COLOURS)]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round", alpha=0.55)
        axes.plot(100 * result.accuracy, place, color=colour, marker="o", markersize=7)
        axes.annotate(f"{100 * result.accuracy:.2f}", (100 * result.accuracy, place), (0, 7), textcoords="offset points", ha="center", fontsize=8.5)
    axes.set_yticks(range(len(results)), [short(name) for name in results])
    axes.set_ylim(len(results) - 0.5, -0.6)
    axes.grid(visible=False, axis="y")
    return figure


def curves_figure(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Validation accuracy of each run over epochs; very many are not named, since no colours would tell them apart."""
    is_named = len(histories) <= _MOST_NAMES_BESIDE
    figure, axes = new_axes("Validation accuracy while training" + ("" if is_named else f" ({len(histories)} runs)"), "epoch", "percent")
    for place, (name, history) in enumerate(histories.items()):
        scored = evaluations(history)
        colour = COLOURS[place % len(COLOURS)]
        axes.plot([row["epoch"] for row in scored], [100 * row["accuracy"] for row in scored], color=colour, marker="o", linewidth=1.8, label=short(name))
    epoch_axis(axes)
    percent_axis(axes)
    if len(histories) <= _MOST_NAMES_INSIDE:
        axes.legend(frameon=False, fontsize=8.5)
    elif is_named:
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def loss_curve(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss (every logged step, and its mean between evaluations) and validation loss over epochs."""
    figure, axes = new_axes("Loss", "epoch", "cross-entropy")
    steps = [row for row in history if row["kind"] == "step" and row["loss"] is not None]
    scored = evaluations(history)
    axes.plot([row["epoch"] for row in steps], [row["loss"] for row in steps], color=BLUE, alpha=0.25, linewidth=0.8)
    smooth = _smoothed([row["loss"] for row in steps])
    axes.plot([row["epoch"] for row in steps], smooth, color=BLUE, linewidth=1.8, label="training")
    axes.plot([row["epoch"] for row in scored], [row["loss"] for row in scored], color=ORANGE, marker="o", linewidth=1.8, label="validation")
    # Read before the bottom is fixed, or matplotlib drops the margin above the highest point.
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    epoch_axis(axes)
    legend_above(axes, 2)
    return figure


def accuracy_curve(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Validation accuracy and macro-F1 over epochs, the kept checkpoint marked."""
    figure, axes = new_axes("Validation scores", "epoch", "percent")
    scored = evaluations(history)
    epochs = [row["epoch"] for row in scored]
    axes.plot(epochs, [100 * row["accuracy"] for row in scored], color=BLUE, marker="o", linewidth=1.8, label="accuracy")
    axes.plot(epochs, [100 * row["macro_f1"] for row in scored], color=GREEN, marker="s", linewidth=1.8, label="macro-F1")
    best = [row for row in scored if row["is_best"]]
    if best:
        axes.axvline(best[-1]["epoch"], color=GREY, linestyle="--", linewidth=1, label="kept checkpoint")
    epoch_axis(axes)
    percent_axis(axes)
    legend_above(axes, 3)
    return figure


def confusion_figure(result: EvalResult, matrix: Sequence[Sequence[int]], split: str) -> Figure:
    """Confusion matrix: colour is the share of the true class, cells hold counts where there is room."""
    classes = len(result.labels)
    is_small = classes <= MANY_CLASSES
    side = max(4.2, min(16.0, 0.75 * classes + 2.2)) if is_small else min(16.0, 0.15 * classes + 3)
    figure = Figure(figsize=(side + 0.6, side), dpi=_DOTS_PER_INCH, layout="tight")
    axes = figure.add_subplot()
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    names = [short(label) for label in result.labels]
    size = 10 if is_small else 6
    # Beyond that names would lie over each other; the table has them.
    has_names = classes <= _MOST_NAMED_CLASSES
    axes.set_xticks(
        range(classes) if has_names else [], names if has_names else [], rotation=45 if is_small else 90, ha="right" if is_small else "center", fontsize=size
    )
    axes.set_yticks(range(classes) if has_names else [], names if has_names else [], fontsize=size)
    axes.set_xlabel("predicted" if has_names else f"predicted ({classes:,} classes in order)")
    axes.set_ylabel("true")
    axes.set_title(f"Confusion matrix ({split}, {result.n:,} rows)", fontsize=11)
    if is_small:
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:,}", ha="center", va="center", fontsize=9, color="white" if shares[i, j] > 0.55 else "#1f2937")
    figure.colorbar(image, ax=axes, shrink=0.75, label="share of the true class")
    return figure


def report_figure(result: EvalResult, split: str) -> Figure:
    """Precision, recall and F1 of each class as bars; of many classes, those with the lowest F1."""
    labels = _lowest(result)
    classes = len(labels)
    is_small = classes <= MANY_CLASSES
    title = f"Per class ({split})" if classes == len(result.labels) else f"The {classes} classes of {len(result.labels):,} with the lowest F1 ({split})"
    figure, axes = new_axes(title, "percent", "class (rows)", height=0.55 * classes + 1.6 if is_small else 0.2 * classes + 1.6)
    names = [f"{short(label)} ({result.per_class[label].support:,})" for label in labels]
    height = 0.26
    for offset, (name, colour) in enumerate((("precision", BLUE), ("recall", ORANGE), ("f1", GREEN))):
        values = [100 * getattr(result.per_class[label], name) for label in labels]
        places = [index + (offset - 1) * height for index in range(classes)]
        axes.barh(places, values, height=height * 0.92, color=colour, label="F1" if name == "f1" else name)
        if is_small:
            for place, value in zip(places, values, strict=True):
                axes.text(value + 0.6, place, f"{value:.1f}", va="center", fontsize=7.5, color="#374151")
    axes.set_yticks(range(classes), names, fontsize=9 if is_small else 6.5)
    axes.set_ylim(-0.6, classes - 0.4)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.grid(visible=False, axis="y")
    legend_above(axes, 3)
    if classes < len(result.labels):
        # So long a title has no room beside the legend: it stands above it.
        axes.set_title(title, fontsize=11, pad=20)
    return figure


def _lowest(result: EvalResult) -> list[str]:
    """All labels in their order, or as many as can be shown, the lowest F1 first."""
    if len(result.labels) <= _MOST_BARS:
        return list(result.labels)
    return sorted(result.labels, key=lambda label: result.per_class[label].f1)[:_MOST_BARS]


def reliability_figure(result: EvalResult, split: str) -> Figure:
    """Share of right answers against probability; a calibrated classifier lies on the diagonal. Of several labels, every label of every row is a decision.

    Args:
        result: With bins of equal width, empty ones left out.
        split: Its name, for the title.
    """
    bins, error, has_several = result.reliability or [], result.ece, result.task == "multi_label"
    figure, axes = new_axes(f"Reliability ({split})", f"probability of the {'label' if has_several else 'answer'}", "percent", height=4.6)
    rows = sum(one.n for one in bins)
    axes.bar(
        [one.low for one in bins],
        [100 * one.accuracy for one in bins],
        width=[one.high - one.low for one in bins],
        align="edge",
        color="#8fb3dc",
        edgecolor="white",
        label="label is there" if has_several else "right",
    )
    axes.bar(
        [one.low for one in bins],
        [100 * one.n / rows for one in bins],
        width=[(one.high - one.low) / 3 for one in bins],
        align="edge",
        color=ORANGE,
        edgecolor="white",
        label="decisions" if has_several else "rows",
    )
    axes.plot([0, 1], [0, 100], color=GREY, linestyle="--", linewidth=1.2, label="calibrated")
    axes.scatter([one.confidence for one in bins], [100 * one.accuracy for one in bins], color="#111827", s=14, zorder=3)
    if error is not None:
        axes.text(0.03, 0.94, f"ECE {error:.4f}", transform=axes.transAxes, va="top", fontsize=10)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 104)
    legend_above(axes, 3)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, without a date."""
    buffer = io.BytesIO()
    _settle(figure)
    with _missing_glyphs():
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG, without a date or random ids."""
    buffer, dots_per_inch = io.BytesIO(), figure.dpi
    _settle(figure)
    with mpl.rc_context(STYLE), _missing_glyphs():
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    figure.dpi = dots_per_inch  # SVG counts in points, and leaves the figure so.
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Lay the figure out once for all its forms; each would do it anew, which takes as long as drawing it."""
    engine = figure.get_layout_engine()
    if engine is not None:
        FigureCanvasAgg(figure)
        with mpl.rc_context(STYLE), _missing_glyphs():
            engine.execute(figure)
        figure.set_layout_engine("none")


@contextlib.contextmanager
def _missing_glyphs() -> Iterator[None]:
    """The bundled font lacks scripts such as Chinese: a box in a PNG, the reader's own font in an SVG, and nothing to tell the user for each glyph."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_axes(title: str, x: str, y: str, height: float = 3.8) -> tuple[Figure, Axes]:
    """An empty figure in the house form.

    Args:
        title: Above it.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.
        height: In inches.
    """
    figure = Figure(figsize=(6.4, height), dpi=_DOTS_PER_INCH, layout="tight")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def percent_axis(axes: Axes) -> None:
    """No mark above 100: where all scores are equal, the space around them would hold some."""
    low, high = axes.get_ylim()
    if high > 100:
        axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 100])
        axes.set_ylim(low, min(high, 101.0))


def parameters_axis(axes: Axes) -> None:
    """Counts on a logarithmic scale, to be called when everything is drawn. The scale's own labels are formulas, and those are off."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 30 * low else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: _count(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _count(value: float) -> str:
    """`10k`, `2M`."""
    unit, size = next(((unit, size) for unit, size in (("M", 1e6), ("k", 1e3)) if value >= size), ("", 1.0))
    return f"{value / size:g}{unit}"


def epoch_axis(axes: Axes) -> None:
    """From the start of training on, with whole epochs as marks where there are any."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=axes.get_xlim()[1] >= 2, nbins=8))


def legend_above(axes: Axes, columns: int) -> None:
    """Beside the title, where it covers no line."""
    axes.legend(
        frameon=False, ncols=columns, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8.5, borderaxespad=0.2, columnspacing=1.2, handlelength=1.6
    )


def _smoothed(values: Sequence[float]) -> list[float]:
    """Running mean over about a fortieth of the run."""
    span = max(1, len(values) // 40)
    out, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - span] if index >= span else 0.0)
        out.append(total / min(index + 1, span))
    return out


def short(label: str) -> str:
    """A name on one line; long ones lose their middle: what tells classes apart is often at the end."""
    label = " ".join(label.split())
    if len(label) <= _LONGEST_LABEL:
        return label
    tail = (_LONGEST_LABEL - 1) // 2
    return f"{label[: _LONGEST_LABEL - 1 - tail]}…{label[-tail:]}"
