"""Scores, differences and tests of scored rows, by hand."""

import numpy as np
import pytest

from lorabel.artifacts.probabilities import ScoredRows
from lorabel.workflows.row_scores import RowAnswers, score_answers


def judged(values):
    return RowAnswers({}, {"accuracy": np.asarray(values, dtype=np.float64)}, np.zeros((1, 1), dtype=bool), None)


@pytest.mark.parametrize(
    ("mine", "its", "expected"),
    [
        ([0.3] * 99, [0.1] * 99, 2 * 1 / 100),  # Never zero: what was really drawn is one of them.
        ([0.1] * 99, [0.3] * 99, 2 * 1 / 100),
        ([0.3] * 9 + [0.1] * 90, [0.2] * 99, 2 * 10 / 100),
        ([0.2] * 99, [0.2] * 99, 1.0),
    ],
)
def test_p_values_of_resamples(mine, its, expected):
    assert judged(mine).p_value_of_resamples(judged(its), "accuracy") == pytest.approx(expected)


def answered(share, rows=200, of_labels=False):
    """The first `share` of the rows is right."""
    labels = np.arange(rows) % 2
    answers = np.where(np.arange(rows) < round(share * rows), labels, 1 - labels)
    probabilities = np.eye(2)[answers]
    return ScoredRows(np.eye(2, dtype=np.int64)[labels] if of_labels else labels, probabilities)


@pytest.mark.parametrize("of_labels", [False, True])
def test_the_seeds_of_a_draw_are_averaged_before_draws_are(of_labels):
    right = [[1.0, 0.5, 0.5], [0.2]]
    found = score_answers([[answered(share, of_labels=of_labels) for share in seeds] for seeds in right])
    assert found.scores["accuracy"].tolist() == pytest.approx([2 / 3, 0.2])
    interval = found.interval("accuracy")
    assert interval.mean == pytest.approx((2 / 3 + 0.2) / 2)
    assert interval.deviation == pytest.approx((2 / 3 - 0.2) / 2**0.5)
    # With two draws a quarter of the resamples holds the first twice, a quarter the second twice.
    assert interval.low < 0.2 < 2 / 3 < interval.high
    single = score_answers([[answered(share, of_labels=of_labels)] for seeds in right for share in seeds])
    assert single.interval("accuracy").mean == pytest.approx(0.55)


def test_rows_are_resampled_though_every_draw_scores_the_same():
    same = score_answers([[answered(0.5)]] * 10)
    low, high = same.interval("accuracy").low, same.interval("accuracy").high
    assert (low, high) == pytest.approx((0.43, 0.57), abs=0.01)


def test_draws_of_two_rows_are_resampled_together():
    shares = [0.3, 0.5, 0.7, 0.9]
    mine, its = (score_answers([[answered(share + more)] for share in shares]) for more in (0.05, 0.0))
    gap = mine.gap(its, "accuracy")
    assert gap.mean == pytest.approx(0.05)
    # Draws lie 20 points apart and rows are few; the difference is the same in each, so its interval is that of 10 rows of 200.
    assert 0.01 < gap.low < gap.high < 0.1
    assert mine.interval("accuracy").high - mine.interval("accuracy").low > 0.25


def test_confusions_are_means_over_seeds_and_left_out_of_many_classes():
    labels = np.array([0, 0, 1, 2])
    seeds = [ScoredRows(labels, np.eye(3)[answers]) for answers in ([0, 1, 1, 2], [0, 0, 1, 1])]
    assert score_answers([[one] for one in seeds]).confusion == [[1.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5]]
    many = np.arange(300)
    found = score_answers([[ScoredRows(many, np.eye(300)[np.roll(many, 1)])]])
    assert found.confusion is None
    assert found.scores["macro_f1"].tolist() == [0.0]


def test_errors_of_each_label_are_means_over_seeds():
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    seeds = [ScoredRows(labels, np.array(answers, dtype=np.float64)) for answers in ([[0, 0], [0, 1], [1, 1], [0, 1]], [[1, 0], [0, 1], [0, 1], [0, 1]])]
    found = score_answers([[one] for one in seeds])
    assert [(one.missed, one.wrong) for one in found.label_errors] == [(1.5, 0.5), (0.0, 1.0)]
    assert found.confusion is None
    assert score_answers([[ScoredRows(labels[:, 0], np.eye(2)[labels[:, 1]])]]).label_errors is None
