"""Figures of a sweep: score against parameters, settings against score as parallel coordinates, importance of settings, curves of the best members."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lorabel.artifacts.history import evaluations
from lorabel.artifacts.sweeps import SweepMember
from lorabel.reports.figures import BLUE, COLOURS, GREY, ORANGE, STYLE, epoch_axis, new_axes, parameters_axis, percent_axis, short
from lorabel.search.space import shown

_CURVES = 8
_LABEL: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
# Numbers that span more than this factor are shown on a logarithmic axis.
_LOG_SPAN = 20


def draw_sweep_figures(
    ranked: Sequence[SweepMember],
    metric: str,
    accuracy: str,
    varied: Sequence[str],
    importances: Mapping[str, float] | None,
    histories: Mapping[int, Sequence[Mapping[str, Any]]],
) -> dict[str, Figure]:
    """All figures of a sweep.

    Args:
        ranked: Members with scores, best first.
        metric: What was maximised.
        accuracy: What accuracy is in words.
        varied: Settings that differ between members.
        importances: Setting -> share of the differences it explains, or None.
        histories: Member -> rows of its `metrics.jsonl`.

    Returns:
        File stem -> figure.
    """
    with mpl.rc_context(STYLE):
        figures = {"pareto": pareto_figure(ranked, metric, accuracy)}
        if varied and len(ranked) > 1:
            figures["settings"] = parallel_figure(ranked, metric, accuracy, varied)
        if importances:
            figures["importances"] = importance_figure(importances)
        figures["curves"] = curves_figure([member for member in ranked if member.number in histories][:_CURVES], varied, histories)
    return figures


def pareto_front(members: Sequence[SweepMember], metric: str) -> list[SweepMember]:
    """Members that no other beats in score with as few parameters, smallest first."""
    front: list[SweepMember] = []
    for member in sorted(members, key=lambda one: (one.trainable or 0, -one.value_of(metric), one.number)):
        if not front or member.value_of(metric) > front[-1].value_of(metric):
            front.append(member)
    return front


def pareto_figure(members: Sequence[SweepMember], metric: str, accuracy: str) -> Figure:
    """Validation score over trainable parameters; the members that nothing smaller beats are joined."""
    figure, axes = new_axes("Score against size", "trainable parameters", _axis_name(metric, accuracy))
    axes.plot(
        [float(member.trainable or 0) for member in members], [_display(member, metric) for member in members], "o", color=GREY, alpha=0.55, label="member"
    )
    front = pareto_front(members, metric)
    places = [(float(member.trainable or 0), _display(member, metric)) for member in front]
    axes.plot([x for x, _ in places], [y for _, y in places], "o-", color=BLUE, label="best of its size or less")
    for member, place in zip(front, places, strict=True):
        axes.annotate(f"{member.number}", place, (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(0.08, 0.14)
    sizes = [member.trainable or 1 for member in members]
    if max(sizes) > 3 * min(sizes):
        parameters_axis(axes)
    if metric != "loss":
        percent_axis(axes)
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def parallel_figure(members: Sequence[SweepMember], metric: str, accuracy: str, varied: Sequence[str]) -> Figure:
    """A line per member through its settings to its score; colour is the score."""
    names = [*varied, metric]
    figure = Figure(figsize=(max(6.4, 1.45 * len(names) + 1.5), 4.2), dpi=150, layout="tight")
    axes = figure.add_subplot()
    scores = [_display(member, metric) for member in members]
    norm = Normalize(min(scores), max(scores) if max(scores) > min(scores) else min(scores) + 1)
    colours = mpl.colormaps["viridis"]
    columns = [_heights([member.assignment.get(name) for member in members], axes, place) for place, name in enumerate(varied)]
    columns.append([float(norm(score)) for score in scores])
    for tick in (0.0, 0.5, 1.0) if len(set(scores)) > 1 else (0.0,):
        axes.text(len(varied) + 0.05, tick, f"{norm.inverse(tick):.1f}" if metric != "loss" else f"{norm.inverse(tick):.3f}", fontsize=7.5, va="center")
    for index in reversed(range(len(members))):  # The best on top.
        axes.plot(
            range(len(names)), [column[index] for column in columns], color=colours(norm(scores[index])), alpha=0.75, linewidth=2.4 if index == 0 else 1.3
        )
    for place in range(len(names)):
        axes.axvline(place, color="#9ca3af", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(names)), [name.rpartition(".")[2] for name in names], fontsize=8.5, rotation=20, ha="right")
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(names) - 0.45)
    axes.set_ylim(-0.06, 1.06)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"Settings and {_axis_name(metric, accuracy)}", fontsize=11)
    return figure


def _heights(values: Sequence[Any], axes: Axes, place: int) -> list[float]:
    """Where each member's value lies on the axis at `place`; writes the axis's own marks."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values) and len(set(numbers)) > 4:
        low, high = min(numbers), max(numbers)
        is_log = low > 0 and high / low > _LOG_SPAN
        scale = mpl.colors.LogNorm(low, high) if is_log else Normalize(low, high)
        for tick in (0.0, 0.5, 1.0):
            axes.text(place - 0.04, tick, shown(float(scale.inverse(tick))), fontsize=7.5, ha="right", va="center", bbox=_LABEL)
        return [float(scale(value)) for value in numbers]
    keys = [json.dumps(value, default=str) for value in values]
    order = sorted(set(keys), key=lambda key: (0, float(key), "") if _is_number(key) else (1, 0.0, key))
    spots = {key: index / max(1, len(order) - 1) if len(order) > 1 else 0.5 for index, key in enumerate(order)}
    for key, spot in spots.items():
        axes.text(place - 0.04, spot, short(shown(json.loads(key))), fontsize=7.5, ha="right", va="center", bbox=_LABEL)
    return [spots[key] for key in keys]


def _is_number(text: str) -> bool:
    return isinstance(json.loads(text), int | float) and not isinstance(json.loads(text), bool)


def importance_figure(importances: Mapping[str, float]) -> Figure:
    """How much of the differences in score each setting explains."""
    figure, axes = new_axes("Importance of settings (fANOVA)", "share of the differences in score, percent", "", height=max(2.0, 0.4 * len(importances) + 1.3))
    values = [100 * value for value in importances.values()]
    axes.barh(range(len(values)), values, color=ORANGE, height=0.6)
    for place, value in enumerate(values):
        axes.text(value + 1, place, f"{value:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(values)), [name.rpartition(".")[2] for name in importances], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.grid(visible=False, axis="y")
    return figure


def curves_figure(members: Sequence[SweepMember], varied: Sequence[str], histories: Mapping[int, Sequence[Mapping[str, Any]]]) -> Figure:
    """Validation accuracy of the best members over epochs."""
    figure, axes = new_axes(f"The best {len(members)} while training" if len(members) > 1 else "Validation accuracy while training", "epoch", "percent")
    for place, member in enumerate(members):
        scored = evaluations(histories[member.number])
        epochs, accuracies = [row["epoch"] for row in scored], [100 * row["accuracy"] for row in scored]
        axes.plot(epochs, accuracies, marker="o", linewidth=1.6, color=COLOURS[place % len(COLOURS)], label=_values_of(member, varied))
    epoch_axis(axes)
    percent_axis(axes)
    names = ", ".join(name.rpartition(".")[2] for name in varied)
    axes.legend(frameon=False, fontsize=7.5, title=f"member: {names}" if names else None, title_fontsize=7.5)
    return figure


def _values_of(member: SweepMember, varied: Sequence[str]) -> str:
    """`3: 0.001, 8`: the member's number and what it has of the settings that vary."""
    return f"{member.number}: " + ", ".join(short(shown(member.assignment.get(name))) for name in varied)


def _display(member: SweepMember, metric: str) -> float:
    """Accuracy and F1 in percent, the loss as it is."""
    value = member.value_of(metric)
    return -value if metric == "loss" else 100 * value


def _axis_name(metric: str, accuracy: str) -> str:
    return {"accuracy": f"validation {accuracy}, percent", "macro_f1": "validation macro-F1, percent", "loss": "validation loss"}[metric]
