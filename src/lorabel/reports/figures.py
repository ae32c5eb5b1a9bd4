"""Figures of a run as PNG and SVG: loss, accuracy, confusion matrix, classification report.

Drawn with the object interface (no global state) and without dates or random ids, so that the same record gives the same bytes.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lorabel.evaluation import EvalResult

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d9752b", "#2f8f6b", "#6b7280"
_LONGEST_LABEL = 18
_STYLE: Any = {
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
    with mpl.rc_context(_STYLE):
        return {
            "loss": loss_curve(history),
            "accuracy": accuracy_curve(history),
            "confusion_matrix": confusion_figure(result, split),
            "classification_report": report_figure(result, split),
        }


def loss_curve(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss (every logged step, and its mean between evaluations) and validation loss over epochs."""
    figure, axes = _axes("Loss", "epoch", "cross-entropy")
    steps = [row for row in history if row["kind"] == "step" and row["loss"] is not None]
    scored = [row for row in history if row["kind"] == "evaluation"]
    axes.plot([row["epoch"] for row in steps], [row["loss"] for row in steps], color=BLUE, alpha=0.25, linewidth=0.8)
    smooth = _smoothed([row["loss"] for row in steps])
    axes.plot([row["epoch"] for row in steps], smooth, color=BLUE, linewidth=1.8, label="training")
    axes.plot([row["epoch"] for row in scored], [row["loss"] for row in scored], color=ORANGE, marker="o", linewidth=1.8, label="validation")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def accuracy_curve(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Validation accuracy and macro-F1 over epochs, the kept checkpoint marked."""
    figure, axes = _axes("Validation scores", "epoch", "percent")
    scored = [row for row in history if row["kind"] == "evaluation"]
    epochs = [row["epoch"] for row in scored]
    axes.plot(epochs, [100 * row["accuracy"] for row in scored], color=BLUE, marker="o", linewidth=1.8, label="accuracy")
    axes.plot(epochs, [100 * row["macro_f1"] for row in scored], color=GREEN, marker="s", linewidth=1.8, label="macro-F1")
    best = [row for row in scored if row["is_best"]]
    if best:
        axes.axvline(best[-1]["epoch"], color=GREY, linestyle="--", linewidth=1, label="kept checkpoint")
    axes.legend(frameon=False, loc="lower right")
    return figure


def confusion_figure(result: EvalResult, split: str) -> Figure:
    """Confusion matrix: colour is the share of the true class, cells hold counts where there is room."""
    classes = len(result.labels)
    side = max(4.2, min(16.0, 0.75 * classes + 2.2)) if classes <= 20 else min(16.0, 0.19 * classes + 4)
    figure = Figure(figsize=(side + 0.6, side))
    axes = figure.add_subplot()
    totals = [max(1, sum(row)) for row in result.confusion_matrix]
    shares = [[value / total for value in row] for row, total in zip(result.confusion_matrix, totals, strict=True)]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    names = [_short(label) for label in result.labels]
    size = 10 if classes <= 20 else 6
    axes.set_xticks(range(classes), names, rotation=45 if classes <= 20 else 90, ha="right" if classes <= 20 else "center", fontsize=size)
    axes.set_yticks(range(classes), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"Confusion matrix ({split}, {result.n:,} rows)", fontsize=11)
    if classes <= 20:
        for i, row in enumerate(result.confusion_matrix):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:,}", ha="center", va="center", fontsize=9, color="white" if shares[i][j] > 0.55 else "#1f2937")
    figure.colorbar(image, ax=axes, shrink=0.75, label="share of the true class")
    figure.set_layout_engine("tight")
    return figure


def report_figure(result: EvalResult, split: str) -> Figure:
    """Precision, recall and F1 of each class as bars."""
    classes = len(result.labels)
    figure = Figure(figsize=(7.2, max(2.6, min(20.0, 0.55 * classes + 1.4)) if classes <= 20 else 0.24 * classes + 1.6))
    axes = figure.add_subplot()
    names = [f"{_short(label)} ({result.per_class[label].support:,})" for label in result.labels]
    height = 0.26
    for offset, (name, colour) in enumerate((("precision", BLUE), ("recall", ORANGE), ("f1", GREEN))):
        values = [100 * getattr(result.per_class[label], name) for label in result.labels]
        places = [index + (offset - 1) * height for index in range(classes)]
        axes.barh(places, values, height=height * 0.92, color=colour, label="F1" if name == "f1" else name)
        if classes <= 20:
            for place, value in zip(places, values, strict=True):
                axes.text(value + 0.6, place, f"{value:.1f}", va="center", fontsize=7.5, color="#374151")
    axes.set_yticks(range(classes), names, fontsize=9 if classes <= 20 else 6.5)
    axes.set_ylim(-0.6, classes - 0.4)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("percent")
    axes.grid(visible=False, axis="y")
    axes.set_title(f"Per class ({split}; rows in brackets)", fontsize=11)
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
    figure.set_layout_engine("tight")
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots per inch, without a date."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG, without a date or random ids."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.8), dpi=150, layout="tight")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _smoothed(values: Sequence[float]) -> list[float]:
    """Running mean over about a fortieth of the run."""
    span = max(1, len(values) // 40)
    out, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - span] if index >= span else 0.0)
        out.append(total / min(index + 1, span))
    return out


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
