"""Figures: names that can be told apart, nothing drawn over, the resolution promised; the same input gives the same bytes."""

import io

import matplotlib.image
import numpy as np
import pytest

from lorabel.data.types import LabelMap
from lorabel.evaluation import evaluate_probabilities
from lorabel.reports import figures


def scores(names, rows=40, seed=0):
    generator = np.random.default_rng(seed)
    return evaluate_probabilities(generator.integers(0, len(names), rows), generator.dirichlet(np.ones(len(names)), rows), LabelMap(tuple(names)))


def history(epochs=3):
    steps = [{"kind": "step", "epoch": n / 10, "loss": 2.0 - n / 40, "step": n} for n in range(1, 10 * epochs + 1)]
    scored = [
        {"kind": "evaluation", "epoch": float(n), "loss": 1.2, "accuracy": 0.4, "macro_f1": 0.3, "is_best": n == 1, "step": n} for n in range(1, epochs + 1)
    ]
    return steps + scored


def test_the_highest_loss_lies_inside_and_epochs_start_at_zero():
    drawn = figures.draw_run_figures(history(), scores("ab"), "validation")
    loss = drawn["loss"].axes[0]
    assert loss.get_ylim()[0] == 0
    assert loss.get_ylim()[1] > 2.0
    for name in ("loss", "accuracy"):
        axes = drawn[name].axes[0]
        assert axes.get_xlim()[0] == 0
        assert [tick for tick in axes.get_xticks() if tick != int(tick)] == []


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_of_one_evaluation_or_none_can_be_drawn(epochs):
    for figure in figures.draw_run_figures(history(epochs), scores("ab"), "validation").values():
        assert figures.svg_bytes(figure).startswith(b"<?xml")


def test_legends_stay_clear_of_titles_and_axes():
    for name, figure in figures.draw_run_figures(history(), scores(["yes", "no"]), "validation").items():
        if name == "confusion_matrix":
            continue
        figures.png_bytes(figure)  # Draws, which settles the layout.
        axes = figure.axes[0]
        legend = axes.get_legend().get_window_extent()
        title = axes.title if axes.title.get_text() else axes._left_title
        assert not legend.overlaps(title.get_window_extent()), name
        assert legend.y0 >= axes.get_window_extent().y1 - 1, name


def test_long_names_that_differ_at_the_end_stay_different():
    names = [f"a_very_long_name_of_an_intent_{number}" for number in range(30)]
    drawn = figures.draw_run_figures(history(), scores(names, 200), "test")
    shown = [tick.get_text() for tick in drawn["confusion_matrix"].axes[0].get_yticklabels()]
    assert len(set(shown)) == 30
    assert max(map(len, shown)) <= 22


def test_names_are_never_read_as_formulas_or_split_over_lines():
    names = ["$\\bad{x}$", "$5 or $6", "two\nlines"]
    drawn = figures.draw_run_figures(history(), scores(names), "test") | figures.draw_comparison_figures(
        {"$\\frac{$": scores("ab")}, {"$\\frac{$": history()}, "test"
    )
    for figure in drawn.values():
        figures.png_bytes(figure)
        assert figures.svg_bytes(figure).startswith(b"<?xml")
    assert ">two lines</text>" in figures.svg_bytes(drawn["confusion_matrix"]).decode()
    assert ">$5 or $6</text>" in figures.svg_bytes(drawn["confusion_matrix"]).decode()


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_are_kept_and_cause_no_warning():
    drawn = figures.draw_run_figures(history(), scores(["日本語", "sport"]), "test")
    figures.png_bytes(drawn["confusion_matrix"])
    assert "日本語" in figures.svg_bytes(drawn["confusion_matrix"]).decode()


def test_no_mark_stands_above_one_hundred_percent():
    perfect = [{"kind": "evaluation", "epoch": epoch, "accuracy": 1.0, "macro_f1": 1.0, "is_best": epoch == 1.0} for epoch in (1.0, 2.0)]
    for figure in (figures.curves_figure({"lora": perfect, "full": perfect}), figures.accuracy_curve(perfect)):
        (axes,) = figure.axes
        assert max(tick for tick in axes.get_yticks() if tick <= axes.get_ylim()[1]) <= 100


def test_every_png_has_150_dots_per_inch_and_the_same_bytes_again():
    first, second = (figures.draw_run_figures(history(), scores("abc"), "test") for _ in range(2))
    for name, figure in first.items():
        content = figures.png_bytes(figure)
        pixels = matplotlib.image.imread(io.BytesIO(content))
        assert pixels.shape[1] == pytest.approx(150 * figure.get_size_inches()[0], abs=1), name
        # In the other order: neither form leaves a trace in the other.
        assert figures.svg_bytes(second[name]) == figures.svg_bytes(figure)
        assert figures.png_bytes(second[name]) == content


def test_runs_side_by_side_show_every_name_and_interval():
    drawn = figures.draw_comparison_figures({"lora": scores("ab"), "full": scores("ab", seed=1)}, {"lora": history(), "full": history(1)}, "test")
    axes = drawn["scores"].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["lora", "full"]
    assert axes.get_title(loc="left").startswith("Accuracy (test")
    assert [text.get_text() for text in drawn["curves"].axes[0].get_legend().get_texts()] == ["lora", "full"]


def test_the_reliability_diagram_shows_what_was_scored_and_is_left_out_where_nothing_was():
    found = scores("abc", 300)
    drawn = figures.draw_run_figures(history(), found, "validation")
    heights = [patch.get_height() for patch in drawn["reliability"].axes[0].patches[: len(found.reliability)]]
    assert heights == pytest.approx([100 * one.accuracy for one in found.reliability])
    before = found.model_copy(update={"reliability": None, "ece": None})
    assert "reliability" not in figures.draw_run_figures(history(), before, "validation")


def test_of_many_classes_the_worst_are_shown_and_the_title_says_so():
    found = scores([f"class {number:03d}" for number in range(150)], 2000)
    figure = figures.report_figure(found, "test")
    (axes,) = figure.axes
    assert figure.get_size_inches()[1] < 11
    assert axes.get_title() == "The 40 classes of 150 with the lowest F1 (test)"
    figure.draw_without_rendering()
    assert not axes.title.get_window_extent().overlaps(axes.get_legend().get_window_extent())
    shown = [text.get_text().partition(" (")[0] for text in axes.get_yticklabels()]
    worst = sorted(found.labels, key=lambda label: found.per_class[label].f1)
    assert shown == worst[:40]
    few = figures.report_figure(scores([f"class {number:03d}" for number in range(40)], 400), "test").axes[0]
    assert (len(few.get_yticklabels()), few.get_title()) == (40, "Per class (test)")


@pytest.mark.parametrize("runs", [13, 20])
def test_the_names_of_many_runs_stand_beside_the_curves(runs):
    figure = figures.curves_figure({f"run {number}": history() for number in range(runs)})
    figures.png_bytes(figure)
    axes, legend = figure.axes[0].get_window_extent(), figure.axes[0].get_legend().get_window_extent()
    assert legend.x0 >= axes.x1
    assert len(figure.axes[0].get_legend().get_texts()) == runs
    assert axes.width > 100
    assert legend.y0 >= 0


def test_very_many_runs_are_counted_not_named():
    (axes,) = figures.curves_figure({f"run {number}": history() for number in range(21)}).axes
    assert axes.get_legend() is None
    assert axes.get_title() == "Validation accuracy while training (21 runs)"
