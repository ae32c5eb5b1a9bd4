"""What an ablation says of each technique, by hand."""

import pytest

from lorabel.artifacts.compares import CompareRecord, CompareRow, Gap, Interval, SplitScores
from lorabel.reports.ablation import draw_ablation_figures, gain, sentences, verdict
from lorabel.reports.figures import BLUE, GREY, png_bytes


def row(name, difference, p, claim=None):
    score = Interval(mean=0.9, low=0.88, high=0.92, deviation=0.01)
    gap = None if difference is None else Gap(mean=difference[0], low=difference[1], high=difference[2])
    scores = SplitScores(accuracy=score, macro_f1=score)
    return CompareRow(method=name, kind="method", seeds=3, settings={}, validation=scores, difference=gap, p_value=p, claim=claim)


ROWS = [
    row("whole recipe", None, None),
    row("step schedule", (-0.001, -0.006, 0.004), 1.0, 0.008),
    row("no smoothing", (-0.02, -0.03, -0.01), 0.002, 0.015),
    row("no warm-up", (0.02, 0.01, 0.03), 0.01),
    row("no augmentation", (-0.02, -0.03, -0.01), 0.06),
]


@pytest.fixture
def record():
    known = {"status": "finished", "request": {}, "base": {}, "split_digests": {}, "metric": "accuracy", "reference": "whole recipe", "judged": "validation"}
    return CompareRecord(**known, rows_judged=100, labels=["a", "b"], encoder="tiny", encoder_parameters=1, rows=ROWS)


def test_the_gain_is_the_other_way_round():
    assert gain(ROWS[1]) == Gap(mean=0.001, low=-0.004, high=0.006)
    assert gain(ROWS[0]) is None


def test_a_gain_inside_the_noise_is_called_noise():
    # An interval over 0, or a corrected p-value of at least 0.05: either is enough.
    assert [verdict(row) for row in ROWS] == [None, "noise", "helps", "hurts", "noise"]


def test_sentences_put_the_claim_beside(record):
    assert sentences(record) == [
        "whole recipe over step schedule: +0.10 points (−0.40 to +0.60), p 1.000: inside the noise; the paper claims +0.8.",
        "whole recipe over no smoothing: +2.00 points (+1.00 to +3.00), p 0.002: a gain; the paper claims +1.5.",
        "whole recipe over no warm-up: −2.00 points (−3.00 to −1.00), p 0.010: a loss.",
        "whole recipe over no augmentation: +2.00 points (+1.00 to +3.00), p 0.060: inside the noise.",
    ]


def test_no_difference_has_no_minus_sign(record):
    rows = [ROWS[0], row("no smoothing", (0.0, 0.0, 0.00001), 1.0)]
    assert sentences(record.model_copy(update={"rows": rows})) == ["whole recipe over no smoothing: +0.00 points (+0.00 to +0.00), p 1.000: inside the noise."]


def test_with_several_labels_it_is_said_that_all_must_be_found(record):
    said = sentences(record.model_copy(update={"task": "multi_label"}))
    assert said[2] == "whole recipe over no warm-up: −2.00 points of subset accuracy (−3.00 to −1.00), p 0.010: a loss."


def test_the_figure_shows_gains_claims_and_noise(record):
    figures = draw_ablation_figures(record)
    assert set(figures) == {"gains"}
    axes = figures["gains"].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["step schedule", "no smoothing", "no warm-up", "no augmentation"]
    dots = [(round(float(line.get_xdata()[0]), 6), line.get_color()) for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert dots == [(0.1, GREY), (2.0, BLUE), (-2.0, BLUE), (2.0, GREY)]
    assert [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())] == [0.8, 1.5]
    assert png_bytes(figures["gains"]) == png_bytes(draw_ablation_figures(record)["gains"])
