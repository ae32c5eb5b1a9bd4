"""Every registered metric: range, perfect score, label permutation, a case worked by hand, agreement with a reference library."""

import math

import numpy as np
import pytest
import sklearn.metrics as reference

from lorabel.metrics.base import Metric
from lorabel.metrics.ece import error_of_bins, reliability_bins
from lorabel.registry import METRICS

NAMES = METRICS.names()
# Four rows, three classes, the last of which never occurs; answers 0, 1, 1, 0; rows 0, 1, 3 right.
TRUE = np.array([0, 1, 0, 0])
PROB = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.5, 0.25, 0.25]])
# F1: class 0 has 2 hits, 2 answers, 3 rows (4/5); class 1 has 1 hit, 2 answers, 1 row (2/3); class 2 has none (0).
# Correlation over counts: c = 3 right of s = 4, rows t = (3, 1, 0), answers p = (2, 2, 0), so (cs - t.p) / sqrt((s2 - p.p)(s2 - t.t)) = (12 - 8) / sqrt(8 * 6).
# Four rows in four bins: |1 - 0.7|, |1 - 0.8|, |0 - 0.6|, |1 - 0.5|.
BY_HAND = {
    "accuracy": 3 / 4,
    "balanced_accuracy": (2 / 3 + 1) / 2,
    "mcc": 4 / math.sqrt(48),
    "macro_f1": (4 / 5 + 2 / 3 + 0) / 3,
    "micro_f1": 3 / 4,
    "weighted_f1": (3 * 4 / 5 + 1 * 2 / 3) / 4,
    "log_loss": -(math.log(0.7) + math.log(0.8) + math.log(0.3) + math.log(0.5)) / 4,
    "brier": ((0.09 + 0.04 + 0.01) + (0.01 + 0.04 + 0.01) + (0.49 + 0.36 + 0.01) + (0.25 + 0.0625 + 0.0625)) / 4,
    "ece": (0.3 + 0.2 + 0.6 + 0.5) / 4,
}


def reference_brier(true, prob):
    return sum(reference.mean_squared_error((true == c).astype(float), prob[:, c]) for c in range(prob.shape[1]))


def reference_ece(true, prob):
    """Straight from the definition, row by row: bin m of 15 holds confidences in ((m - 1) / 15, m / 15]."""
    total = 0.0
    for number in range(15):
        rows = [i for i in range(len(true)) if number / 15 < prob[i].max() <= (number + 1) / 15]
        total += abs(sum(prob[i].argmax() == true[i] for i in rows) - sum(prob[i].max() for i in rows))
    return total / len(true)


def of_answers(function, **options):
    return lambda true, prob: function(true, prob.argmax(axis=1), **options)


REFERENCE = {
    "accuracy": of_answers(reference.accuracy_score),
    "balanced_accuracy": of_answers(reference.balanced_accuracy_score),
    "mcc": of_answers(reference.matthews_corrcoef),
    "macro_f1": of_answers(reference.f1_score, average="macro"),
    "micro_f1": of_answers(reference.f1_score, average="micro"),
    "weighted_f1": of_answers(reference.f1_score, average="weighted"),
    "log_loss": reference.log_loss,
    "brier": reference_brier,
    "ece": reference_ece,
}


def sample(seed, classes=4, rows=200):
    random = np.random.default_rng(seed)
    return random.permutation(np.arange(rows) % classes), random.dirichlet(np.ones(classes), rows)


def test_the_registry_holds_what_is_promised_and_every_metric_is_whole():
    assert set(BY_HAND) == set(REFERENCE) == set(NAMES)
    for name, metric in METRICS.items():
        assert isinstance(metric, Metric), name
        assert metric.source
        assert metric.direction in ("higher", "lower")
        assert metric.low < metric.high


@pytest.mark.parametrize("name", NAMES)
def test_values_stay_in_range(name):
    metric = METRICS.get(name)
    wrong = np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])
    one_class = np.zeros(5, dtype=int), np.tile([1.0, 0.0], (5, 1))
    for true, prob in [sample(0), sample(1, classes=2, rows=4), (TRUE, PROB), wrong, one_class]:
        found = metric(true, prob)
        assert isinstance(found, float)
        assert metric.low <= found <= metric.high


@pytest.mark.parametrize("name", NAMES)
def test_the_perfect_score_is_reached_and_others_are_worse(name):
    metric = METRICS.get(name)
    true, noisy = sample(2)
    assert metric(true, np.eye(4)[true]) == pytest.approx(metric.perfect, abs=1e-12)
    worse = metric(true, noisy) - metric.perfect
    assert worse < 0 if metric.direction == "higher" else worse > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_classes_and_of_rows_does_not_matter(name):
    metric = METRICS.get(name)
    true, prob = sample(3)
    order = np.array([2, 0, 3, 1])
    renumbered = np.argsort(order)[true]
    assert metric(renumbered, prob[:, order]) == pytest.approx(metric(true, prob), abs=1e-12)
    assert metric(true[::-1], prob[::-1]) == pytest.approx(metric(true, prob), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_case_worked_by_hand(name):
    assert METRICS.get(name)(TRUE, PROB) == pytest.approx(BY_HAND[name], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 4, 30])
def test_the_reference_agrees(name, classes):
    true, prob = sample(classes, classes, 600)
    assert METRICS.get(name)(true, prob) == pytest.approx(REFERENCE[name](true, prob), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_scored_is_refused(name):
    metric = METRICS.get(name)
    for true, prob in [(np.zeros(0, dtype=int), np.zeros((0, 2))), (TRUE, PROB[:3]), (TRUE, PROB[:, 0]), (TRUE, PROB[:, :1])]:
        with pytest.raises(ValueError, match="shapes do not fit, got"):
            metric(true, prob)
    for bad in (3, -1):
        with pytest.raises(ValueError, match=f"a class without a column, got {bad}"):
            metric(np.array([bad, 1, 0, 0]), PROB)


def test_bins_hold_every_row_once_and_their_upper_edge():
    bins = reliability_bins(np.array([0, 0, 1]), np.array([[0.6, 0.4], [1.0, 0.0], [0.4, 0.6]]), bins=5)
    assert [(one.n, one.accuracy) for one in bins] == [(2, 1.0), (1, 1.0)]
    assert (bins[0].low, bins[0].high) == pytest.approx((0.4, 0.6))
    assert error_of_bins(bins) == pytest.approx(2 / 3 * 0.4)
    rounded_up = np.array([[1.0000000000000002, 0.0]])
    assert reliability_bins(np.array([0]), rounded_up)[0].high == 1.0


def test_a_probability_on_an_edge_belongs_to_the_bin_below():
    (found,) = reliability_bins(np.array([0]), np.array([[0.75, 0.25]]), bins=4)
    assert (found.low, found.high) == (0.5, 0.75)
