"""Temperature scaling: finds the temperature that data were drawn with, keeps every answer, and says when a split is too easy or too small."""

import math

import numpy as np
import pytest

from lorabel.calibration import HIGHEST, LOWEST, fit_temperature
from lorabel.errors import DataError
from lorabel.inference.answers import probabilities
from lorabel.metrics.ece import ece
from lorabel.metrics.proper import log_loss


def drawn(temperature, rows=20_000, classes=4, seed=0):
    """Logits, and classes drawn from their softmax over a temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(rows, classes))
    cumulated = probabilities(logits, temperature).cumsum(axis=1)
    return np.minimum((random.random((rows, 1)) > cumulated).sum(axis=1), classes - 1), logits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_data_were_drawn_with_is_found(temperature):
    labels, logits = drawn(temperature)
    found = fit_temperature(labels, logits)
    assert found.note is None
    assert found.temperature == pytest.approx(temperature, rel=0.04)
    assert fit_temperature(labels, logits) == found
    before, after = probabilities(logits), probabilities(logits, found.temperature)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert log_loss(labels, after) <= log_loss(labels, before)
    assert ece(labels, after) < 0.01


def test_a_case_worked_by_hand():
    # Two classes, logits (1, 0); 3 of 4 rows are right, so the best probability is 3/4: 1/T = log 3.
    found = fit_temperature(np.array([0, 0, 0, 1]), np.tile([1.0, 0.0], (4, 1)))
    assert found.temperature == pytest.approx(1 / math.log(3), rel=1e-4)


def test_no_step_away_from_the_temperature_is_better():
    labels, logits = drawn(1.7, rows=300)
    found = fit_temperature(labels, logits).temperature
    at = log_loss(labels, probabilities(logits, found))
    assert all(log_loss(labels, probabilities(logits, found * factor)) > at for factor in (0.98, 1.02))


@pytest.mark.parametrize(
    ("labels", "logits", "temperature", "note"),
    [
        ([0, 1], [[2.0, 0.0], [0.0, 2.0]], 1.0, "answered right"),
        ([0], [[2.0, 0.0]], 1.0, "answered right"),
        ([0, 1], [[0.5, 0.5], [0.1, 0.1]], 1.0, "score alike"),
        ([1, 0], [[2.0, 0.0], [0.0, 2.0]], HIGHEST, "limit of 10"),
        ([0] * 9999 + [1], [[0.5, 0.0]] * 9999 + [[0.0001, 0.0]], LOWEST, "limit of 0.1"),
        ([0, 0, 1], [[1e5, 0.0]] * 3, HIGHEST, "limit of 10"),
    ],
    ids=["all right", "one row", "flat", "all wrong", "nearly all right", "huge logits"],
)
def test_splits_that_say_too_little(labels, logits, temperature, note):
    found = fit_temperature(np.array(labels), np.array(logits))
    assert found.temperature == temperature
    assert note in found.note


def test_rows_that_cannot_be_used_are_refused():
    for labels, logits in [([], np.zeros((0, 2))), ([0], np.zeros((2, 2)))]:
        with pytest.raises(ValueError, match="calibration: .* got .* expected"):
            fit_temperature(np.array(labels, dtype=int), np.array(logits))
    with pytest.raises(DataError, match="not finite"):
        fit_temperature(np.array([0]), np.array([[math.nan, 0.0]]))
