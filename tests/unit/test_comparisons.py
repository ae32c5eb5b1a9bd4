"""Paired tests, corrections and two-level resamples, against hand calculations."""

import math

import numpy as np
import pytest

from lorabel.evaluation import accuracy_of
from lorabel.stats import holm, mcnemar_exact, merged_p_value, resampled_scores


def paired(wins, losses, both=5):
    a = np.array([True] * wins + [False] * losses + [True] * both)
    b = np.array([False] * wins + [True] * losses + [True] * both)
    return a, b


def test_mcnemar_by_hand():
    # One against eight: twice the chance of at most one head in nine tosses, 2 (1 + 9) / 2^9.
    assert mcnemar_exact(*paired(1, 8)) == pytest.approx(20 / 512)
    assert mcnemar_exact(*paired(8, 1)) == pytest.approx(20 / 512)
    assert mcnemar_exact(*paired(0, 5)) == pytest.approx(2 / 32)
    assert mcnemar_exact(*paired(3, 3)) == 1.0
    assert mcnemar_exact(*paired(0, 0)) == 1.0
    # Rows that both get right or both get wrong say nothing.
    assert mcnemar_exact(*paired(1, 8, both=5000)) == mcnemar_exact(*paired(1, 8))


def test_mcnemar_refuses_other_rows():
    with pytest.raises(ValueError, match="rows differ, got 3 and 2"):
        mcnemar_exact(np.ones(3, bool), np.ones(2, bool))


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04: times 3, 2, 1 gives 0.03, 0.06, 0.04, and none may be below the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])


def test_merged_p_values():
    assert merged_p_value([0.03]) == 0.03
    assert merged_p_value([0.02, 0.04]) == pytest.approx(0.06)
    assert merged_p_value([0.9, 0.8]) == 1.0


def cells(correct):
    """Cells of a two-class matrix: class 0 is true everywhere."""
    return np.where(np.asarray(correct, dtype=bool), 0, 1)


def test_resampled_rows_spread_as_theory_says():
    correct = np.arange(400) % 4 != 0
    found = resampled_scores(cells(correct)[None], 2, {"accuracy": accuracy_of}, resamples=4000)["accuracy"]
    assert found.mean() == pytest.approx(0.75, abs=0.002)
    assert found.std() == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.05)


def test_seeds_are_resampled_too():
    always, never = cells(np.ones(50)), cells(np.zeros(50))
    found = resampled_scores(np.stack([always, never]), 2, {"accuracy": accuracy_of}, resamples=4000)["accuracy"]
    assert set(found.tolist()) == {0.0, 0.5, 1.0}
    assert (found == 0.5).mean() == pytest.approx(0.5, abs=0.03)


def test_the_same_rows_are_drawn_for_every_method():
    generator = np.random.default_rng(0)
    correct = generator.random((3, 60)) < 0.8
    scores = {"accuracy": accuracy_of}
    one = resampled_scores(cells(correct[:1]), 2, scores, resamples=200)["accuracy"]
    # Another number of seeds, all equal to the first: where the rows are the same, so is every resampled score.
    three = resampled_scores(np.repeat(cells(correct[:1]), 3, axis=0), 2, scores, resamples=200)["accuracy"]
    assert np.allclose(one, three)
    assert not np.allclose(one, resampled_scores(cells(correct[:1]), 2, scores, seed=1, resamples=200)["accuracy"])
