"""Paired tests, corrections and two-level resamples, against hand calculations."""

import math

import numpy as np
import pytest

from lorabel.evaluation import count_scores
from lorabel.stats import holm, mcnemar_exact, merged_p_value, paired_difference, resampled_means, resampled_scores, stretch_of


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


ACCURACY = {"accuracy": count_scores(np.ones(2, dtype=bool))["accuracy"]}


def resampled(correct, **more):
    """Resampled accuracy of seeds (S, N) that are right or wrong: class 0 is true everywhere."""
    answers = np.where(np.asarray(correct, dtype=bool), 0, 1)
    return resampled_scores(np.zeros(answers.shape[1], dtype=np.int64), answers, 2, ACCURACY, **more)["accuracy"]


def test_resampled_rows_spread_as_theory_says():
    correct = np.arange(400) % 4 != 0
    found = resampled(correct[None], resamples=4000)
    assert found.mean() == pytest.approx(0.75, abs=0.002)
    assert found.std() == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.05)


def test_seeds_are_resampled_too():
    found = resampled(np.stack([np.ones(50), np.zeros(50)]), resamples=4000)
    assert np.unique(found.round(9)).tolist() == pytest.approx([0.5 - stretch_of(2) / 2, 0.5, 0.5 + stretch_of(2) / 2])
    assert (found == 0.5).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_over_few_seeds_cover_as_often_as_they_say(seeds):
    """Seeds' scores are normal around 0.7 and rows do not matter: 95 % intervals without the stretch hold it in 70 % of cases with 3 seeds."""
    generator, held = np.random.default_rng(0), 0
    for trial in range(400):
        scores = 0.7 + 0.01 * generator.standard_normal(seeds)
        found = resampled_means([1] * seeds, 1, lambda rows, scores=scores: {"score": scores}, seed=trial, resamples=300)["score"]
        low, high = np.quantile(found, [0.025, 0.975])
        held += low <= 0.7 <= high
    assert 0.9 < held / 400 < 0.985


def test_the_stretch_is_that_of_student_s_intervals():
    assert stretch_of(1) == 1.0
    assert stretch_of(3) == pytest.approx(math.sqrt(3 / 2) * 4.3027 / 1.96, rel=1e-3)
    assert stretch_of(1000) == pytest.approx(1.0, abs=0.005)


def test_a_paired_difference_is_over_rows_and_seeds():
    """Three seeds that gain 3, 4 and 8 points, whatever the rows: Student's p-value is 0.08, and the least that resamples can say is far below."""
    gains = np.array([0.03, 0.04, 0.08])
    found = paired_difference(lambda rows: gains, 3, 2000)
    assert found.mean == pytest.approx(0.05)
    assert found.low < 0 < found.high
    assert 0.02 < found.p_value < 0.2
    assert paired_difference(lambda rows: gains[:1], 1, 2000).p_value == pytest.approx(2 / 2001)
    assert paired_difference(lambda rows: np.zeros(2), 2, 10).p_value == 1.0


def test_a_paired_difference_spreads_with_the_rows():
    generator = np.random.default_rng(0)
    a, b = generator.random((1, 400)) < 0.9, generator.random((1, 400)) < 0.8
    found = paired_difference(lambda rows: a[:, rows].mean(axis=1) - b[:, rows].mean(axis=1), 1, 400)
    gap = a[0].astype(float) - b[0]
    assert found.mean == pytest.approx(gap.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * gap.std() / 20, rel=0.08)


def test_the_same_rows_are_drawn_for_every_method():
    generator = np.random.default_rng(0)
    correct = generator.random((3, 60)) < 0.8
    one = resampled(correct[:1], resamples=200)
    # Another number of seeds, all equal to the first: where the rows are the same, so is every resampled score.
    three = resampled(np.repeat(correct[:1], 3, axis=0), resamples=200)
    assert np.allclose(one, three)
    assert not np.allclose(one, resampled(correct[:1], seed=1, resamples=200))
