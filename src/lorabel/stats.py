"""Intervals and comparisons: how sure a measured score is.

Source: Efron 1979, "Bootstrap methods: another look at the jackknife". Intervals are percentile intervals over seeded resamples of the evaluated rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """A paired comparison of two classifiers on the same rows.

    Attributes:
        mean: Accuracy of a minus accuracy of b.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided, of no difference.
    """

    mean: float
    low: float
    high: float
    p_value: float


def confusion_intervals(
    confusion: NDArray[np.int64], scores: dict[str, Callable[[NDArray[np.int64]], NDArray[np.float64]]], seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of scores that depend on the confusion matrix alone.

    Resampling N rows with replacement is a multinomial draw over the cells of the matrix, so the cost does not grow with N.

    Args:
        confusion: (C, C) counts, true class by row.
        scores: Name -> function from resampled matrices (S, C, C) to scores (S,).
        seed: Of the resamples.

    Returns:
        Name -> (low, high).
    """
    cells = confusion.reshape(-1)
    filled = np.flatnonzero(cells)
    total = int(cells.sum())
    generator = np.random.default_rng(seed)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in scores}
    for _ in range(10):
        drawn = np.zeros((RESAMPLES // 10, cells.size), dtype=np.int64)
        drawn[:, filled] = generator.multinomial(total, cells[filled] / total, size=len(drawn))
        matrices = drawn.reshape(-1, *confusion.shape)
        for name, score in scores.items():
            found[name].append(score(matrices))
    ends = {name: np.quantile(np.concatenate(parts), [0.025, 0.975]) for name, parts in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def paired_bootstrap(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_], seed: int = 0, resamples: int = 10_000) -> Difference:
    """Compare two classifiers row by row.

    Args:
        correct_a: (N,) where a was right.
        correct_b: (N,) where b was right, on the same rows.
        seed: Of the resamples.
        resamples: Their number.

    Returns:
        The difference of accuracies with its interval.

    Raises:
        ValueError: The two do not cover the same number of rows.
    """
    if len(correct_a) != len(correct_b):
        raise ValueError(f"paired_bootstrap: rows differ, got {len(correct_a)} and {len(correct_b)}; expected the same rows. Evaluate both on one split.")
    n = len(correct_a)
    wins = int((correct_a & ~correct_b).sum())
    losses = int((~correct_a & correct_b).sum())
    drawn = np.random.default_rng(seed).multinomial(n, [wins / n, losses / n, 1 - (wins + losses) / n], size=resamples)
    differences = (drawn[:, 0] - drawn[:, 1]) / n
    low, high = np.quantile(differences, [0.025, 0.975])
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    return Difference((wins - losses) / n, float(low), float(high), float(min(1.0, 2 * tail)))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; the deviation of one value is 0."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0
