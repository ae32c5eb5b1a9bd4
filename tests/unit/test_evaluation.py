"""Scores equal scikit-learn's; intervals behave; comparisons are paired."""

import tracemalloc

import numpy as np
import pytest

from lorabel.data.types import LabelMap
from lorabel.errors import ConfigError, DataError
from lorabel.evaluation import answered_rows, check_threshold, collapse, count_scores, evaluate_probabilities
from lorabel.registry import METRICS
from lorabel.stats import confusion_intervals, mean_and_spread


@pytest.mark.parametrize("classes", [2, 5, 77])
def test_scores_equal_scikit_learn(classes):
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

    random = np.random.default_rng(classes)
    true = random.integers(0, max(2, classes - 1), size=300)  # The last class never occurs, where there are many.
    prob = random.dirichlet(np.ones(classes), size=300)
    prob[np.arange(300), true] += random.random(300)
    prob /= prob.sum(axis=1, keepdims=True)
    found = evaluate_probabilities(true, prob, LabelMap(tuple(f"c{i:02}" for i in range(classes))))
    guess, all_labels = prob.argmax(axis=1), list(range(classes))
    assert found.accuracy == pytest.approx(accuracy_score(true, guess))
    assert found.macro_f1 == pytest.approx(f1_score(true, guess, average="macro", labels=all_labels, zero_division=0))
    assert found.loss == pytest.approx(log_loss(true, prob, labels=all_labels))
    assert found.confusion_matrix == confusion_matrix(true, guess, labels=all_labels).tolist()
    expected = precision_recall_fscore_support(true, guess, labels=all_labels, zero_division=0)
    for index, scores in enumerate(found.per_class.values()):
        assert (scores.precision, scores.recall, scores.f1, scores.support) == pytest.approx(tuple(column[index] for column in expected))


def test_the_interval_of_accuracy_is_the_binomial_one():
    true = np.zeros(2000, dtype=int)
    prob = np.tile([0.9, 0.1], (2000, 1))
    prob[:200] = [0.1, 0.9]
    found = evaluate_probabilities(true, prob, LabelMap(("a", "b")))
    half = 1.96 * (0.9 * 0.1 / 2000) ** 0.5
    assert found.interval["accuracy"] == pytest.approx((0.9 - half, 0.9 + half), abs=0.0015)
    assert found == evaluate_probabilities(true, prob, LabelMap(("a", "b")))


def test_perfect_scores_have_a_point_interval():
    found = evaluate_probabilities(np.array([0, 1, 1]), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), LabelMap(("a", "b")))
    assert (found.accuracy, found.macro_f1, found.loss) == (1, 1, 0)
    assert found.interval == {"accuracy": (1, 1), "macro_f1": (1, 1)}


def test_the_interval_of_macro_f1_lies_around_it_where_classes_have_two_rows():
    """A resample leaves out one class in seven; were those to count 0, the interval of a perfect classifier would end below 1."""
    true = np.repeat(np.arange(40), 2)
    names = LabelMap(tuple(f"c{i:02}" for i in range(41)))  # The last one neither occurs nor is answered: 0 in the score and in each resample.
    perfect = evaluate_probabilities(true, np.eye(41)[true], names)
    assert perfect.macro_f1 == pytest.approx(40 / 41)
    random = np.random.default_rng(0)
    guess = np.where(random.random(80) < 0.8, true, random.integers(0, 40, 80))
    found = evaluate_probabilities(true, np.eye(41)[guess], names)
    low, high = found.interval["macro_f1"]
    assert low < found.macro_f1 < high
    assert (low + high) / 2 == pytest.approx(found.macro_f1, abs=0.06)


def test_intervals_of_thousands_of_classes_need_no_room_for_all_pairs_of_them():
    """A matrix of 5,000 classes has 25 million cells; of 400 rows at most 400 are filled."""
    random = np.random.default_rng(0)
    confusion = np.zeros((5000, 5000), dtype=np.int64)
    np.add.at(confusion, (random.integers(0, 5000, 400), random.integers(0, 5000, 400)), 1)
    np.add.at(confusion, (np.arange(600), np.arange(600)), 1)
    tracemalloc.start()
    found = confusion_intervals(confusion, count_scores(confusion.sum(axis=0) + confusion.sum(axis=1) > 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["accuracy"][0] < 0.6 < found["accuracy"][1]
    assert peak < 1e9


def test_empty_and_misshapen_input_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        evaluate_probabilities(np.zeros(0, dtype=int), np.zeros((0, 2)), LabelMap(("a", "b")))
    with pytest.raises(ValueError, match="shapes do not fit"):
        evaluate_probabilities(np.zeros(3, dtype=int), np.zeros((3, 3)), LabelMap(("a", "b")))


def test_mean_and_spread():
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_spread([5.0]) == (5.0, 0.0)


def test_calibration_scores_are_those_of_the_registry_and_the_bins_add_up():
    random = np.random.default_rng(1)
    true, prob = random.integers(0, 3, 500), random.dirichlet(np.ones(3), 500)
    found = evaluate_probabilities(true, prob, LabelMap(("a", "b", "c")))
    for name in ("ece", "brier", "log_loss", "accuracy", "macro_f1"):
        assert getattr(found, name) == pytest.approx(METRICS.get(name)(true, prob), abs=1e-12)
    assert sum(one.n for one in found.reliability) == 500
    assert sum(one.n * one.accuracy for one in found.reliability) == pytest.approx(500 * found.accuracy)


def test_answered_rows_by_hand():
    true = np.array([0, 1, 0, 1])
    prob = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.45, 0.55]])
    found = answered_rows(true, prob, 0.6)
    assert (found.n, found.coverage, found.accuracy) == (3, 0.75, pytest.approx(2 / 3))
    nothing = answered_rows(true, prob, 0.95)
    assert (nothing.n, nothing.coverage, nothing.accuracy) == (0, 0.0, None)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ConfigError, match="--abstain-below: not a probability, got .*; expected a number over 0"):
        check_threshold(threshold)


def test_probabilities_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="not finite"):
        evaluate_probabilities(np.array([0]), np.array([[np.nan, np.nan]]), LabelMap(("a", "b")))


def test_one_answer_for_all_texts_is_a_collapse():
    labels = LabelMap(("a", "b", "c"))
    truth = np.arange(400) % 3
    said = collapse(truth, np.where(np.arange(400) < 2, 0, 1), labels)
    assert said.startswith("The classifier has collapsed: 99.5 % of the validation texts get the same answer, 'b'")
    assert collapse(truth, np.where(np.arange(400) < 3, 0, 1), labels) is None
    assert collapse(np.ones(400, dtype=np.int64), np.ones(400, dtype=np.int64), labels) is None
    several, none = np.eye(3, dtype=np.uint8)[truth], np.zeros((400, 3), dtype=np.uint8)
    assert "the same answer, no label" in collapse(several, none, labels)
    assert "the same answer, 'a' and 'c'" in collapse(several, none + np.array([1, 0, 1], dtype=np.uint8), labels)
    assert collapse(several, several, labels) is None
