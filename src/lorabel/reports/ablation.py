"""What each technique brings: the recipe less the recipe without it, beside what the paper claims."""

from __future__ import annotations

from typing import Literal

import matplotlib as mpl
from matplotlib.figure import Figure

from lorabel.artifacts.compares import CompareRecord, CompareRow, Gap
from lorabel.reports.compare_figures import curves_figure
from lorabel.reports.compare_tables import LEVEL, p_value
from lorabel.reports.figures import BLUE, GREY, ORANGE, STYLE, new_axes, short
from lorabel.reports.tables import signed_points

Verdict = Literal["helps", "hurts", "noise"]


def gain(row: CompareRow) -> Gap | None:
    """Accuracy of the whole recipe less that of the row, which lacks one technique; None where either was not trained.

    Args:
        row: Of an ablation.
    """
    if row.difference is None:
        return None
    return Gap(mean=-row.difference.mean, low=-row.difference.high, high=-row.difference.low)


def verdict(row: CompareRow) -> Verdict | None:
    """Whether a technique brings more than noise: its interval leaves out 0, and the corrected p-value is below 0.05.

    Args:
        row: Of an ablation.

    Returns:
        None where there is nothing to judge.
    """
    found = gain(row)
    if found is None or row.p_value is None:
        return None
    if found.low <= 0 <= found.high or row.p_value >= LEVEL:
        return "noise"
    return "helps" if found.mean > 0 else "hurts"


_WORDS: dict[Verdict, str] = {"noise": "inside the noise", "helps": "a gain", "hurts": "a loss"}


def sentences(record: CompareRecord) -> list[str]:
    """One sentence per row: what the recipe gains over it, whether that is noise, and what the paper claims.

    Args:
        record: The ablation.
    """
    found = []
    of = "" if record.task == "single_label" else f" of {record.compared_name}"
    for row in record.rows:
        one, said = gain(row), verdict(row)
        if one is None or said is None:
            continue
        text = f"{record.reference} over {row.method}: {signed_points(one.mean)} points{of} ({signed_points(one.low)} to {signed_points(one.high)}), p {p_value(row.p_value)}: {_WORDS[said]}"
        found.append(text + (f"; the paper claims {signed_points(row.claim, 1)}." if row.claim is not None else "."))
    return found


def draw_ablation_figures(record: CompareRecord) -> dict[str, Figure]:
    """Gains with intervals beside the paper's claims, and learning curves.

    Args:
        record: The ablation, finished.

    Returns:
        File stem -> figure.
    """
    with mpl.rc_context(STYLE):
        figures = {"gains": gains_figure(record)}
        if any(curve for row in record.rows for curve in row.curves):
            figures["curves"] = curves_figure(record)
    return figures


def gains_figure(record: CompareRecord) -> Figure:
    """Gain of the whole recipe over each row, 95 % intervals; grey where it is inside the noise, a cross where the paper claims a gain."""
    rows = [(row, one) for row in record.rows if (one := gain(row)) is not None]
    figure, axes = new_axes(
        f"Gain of the whole recipe ({record.judged})", f"points of {record.compared_name}, 95 % intervals", "", height=0.42 * len(rows) + 1.7
    )
    axes.axvline(0, color=GREY, linewidth=1)
    for place, (row, one) in enumerate(rows):
        colour = GREY if verdict(row) == "noise" else BLUE
        axes.plot([100 * one.low, 100 * one.high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round", alpha=0.6)
        axes.plot(100 * one.mean, place, color=colour, marker="o", markersize=7, linestyle="none")
        if row.claim is not None:
            axes.plot(100 * row.claim, place, color=ORANGE, marker="x", markersize=8, markeredgewidth=2, linestyle="none")
    handles = [axes.plot([], [], color=colour, marker=marker, linestyle="none", label=name)[0] for colour, marker, name in _LEGEND]
    axes.set_yticks(range(len(rows)), [short(row.method) for row, _ in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.grid(visible=False, axis="y")
    axes.legend(handles=handles, frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


_LEGEND = ((BLUE, "o", "more than noise"), (GREY, "o", "inside the noise"), (ORANGE, "x", "the paper's claim"))
