"""Intervals and comparisons: how sure a measured score is.

Source: Efron 1979, "Bootstrap methods: another look at the jackknife". Intervals are percentile intervals over seeded resamples of the evaluated rows, and of the seeds
where there are several. P-values: McNemar 1947 in its exact form, corrected by Holm 1979 where there are several comparisons.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
# Draws held in memory at once: 16 MB.
_DRAWN_AT_ONCE = 2_000_000


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


def row_intervals(rows: int, scores: Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]], seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of scores that depend on the rows through counts.

    Args:
        rows: N.
        scores: From how often each row was drawn, (S, N), to scores by name, (S,) each.
        seed: Of the resamples.

    Returns:
        Name -> (low, high).
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, min(RESAMPLES, _DRAWN_AT_ONCE // rows))
    found: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(at_once, RESAMPLES - start)).astype(np.float64)
        for name, values in scores(drawn).items():
            found.setdefault(name, []).append(values)
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


def resampled_scores(
    cells: NDArray[np.int64],
    classes: int,
    scores: Mapping[str, Callable[[NDArray[np.int64]], NDArray[np.float64]]],
    seed: int = 0,
    resamples: int = 1000,
    groups: Sequence[int] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Mean score over seeds, on resampled rows and resampled seeds.

    The rows of a resample depend on `seed` and N alone, so that two methods on the same rows are resampled together and their scores can be subtracted.

    Args:
        cells: (S, N) of each seed, true class times C plus predicted class of each row.
        classes: C.
        scores: Name -> function from matrices (S, C, C) to scores (S,).
        seed: Of the resamples.
        resamples: Their number R.
        groups: As for `resampled_means`.

    Returns:
        Name -> (R,).

    Source: Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8 (two levels, both with replacement).
    """
    num_seeds, num_rows = cells.shape
    shifted = cells + (classes * classes * np.arange(num_seeds))[:, None]

    def of_rows(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        counts = np.bincount(shifted[:, rows].ravel(), minlength=num_seeds * classes * classes).reshape(num_seeds, classes, classes)
        return {name: score(counts) for name, score in scores.items()}

    return resampled_means(groups or [1] * num_seeds, num_rows, of_rows, seed, resamples)


def resampled_means(
    groups: Sequence[int], num_rows: int, scores: Callable[[NDArray[np.int64]], Mapping[str, NDArray[np.float64]]], seed: int = 0, resamples: int = 1000
) -> dict[str, NDArray[np.float64]]:
    """`resampled_scores` of whatever can be scored on rows that were drawn.

    Args:
        groups: Consecutive seeds that are drawn as one, their scores averaged first: as many ones as there are seeds where each is drawn by itself; the seeds of each draw of
            training rows where the draws are.
        num_rows: N.
        scores: From the drawn rows (N,) to each seed's scores by name, (S,) each.
        seed: Of the resamples.
        resamples: Their number R.

    Returns:
        Name -> (R,).
    """
    of_rows, of_groups = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        scored = scores(of_rows.integers(num_rows, size=num_rows))
        drawn = of_groups.integers(len(groups), size=len(groups))
        for name, values in scored.items():
            found.setdefault(name, []).append(float(group_means(values, groups)[drawn].mean()))
    return {name: np.array(values) for name, values in found.items()}


def group_means(values: NDArray[np.float64], groups: Sequence[int]) -> NDArray[np.float64]:
    """Means of consecutive values, (S,) -> (G,).

    Args:
        values: All of them.
        groups: How many are of each group, at least 1; their sum is S.
    """
    starts = np.cumsum([0, *groups[:-1]])
    return np.asarray(np.add.reduceat(values, starts) / np.asarray(groups))


def mcnemar_exact(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_]) -> float:
    """Two-sided p-value of two classifiers being wrong equally often on the same rows.

    Of the rows that only one of them gets right, each has it right with probability one half where they are equally good: a binomial test.

    Args:
        correct_a: (N,) where a was right.
        correct_b: (N,) where b was right, on the same rows.

    Returns:
        In (0, 1]; 1 where they are right on the same rows.

    Raises:
        ValueError: The two do not cover the same number of rows.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages"; exact form.
    """
    from scipy.stats import binomtest

    if len(correct_a) != len(correct_b):
        raise ValueError(f"mcnemar_exact: rows differ, got {len(correct_a)} and {len(correct_b)}; expected the same rows. Evaluate both on one split.")
    wins, losses = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def merged_p_value(p_values: Sequence[float]) -> float:
    """One p-value for the same hypothesis tested several times on dependent data, such as with several seeds on the same rows: twice the mean.

    Args:
        p_values: At least one, each in [0, 1].

    Returns:
        In [0, 1]; a single one is returned as it is.

    Source: Vovk and Wang 2020, "Combining p-values via averaging", proposition 2: valid whatever the dependence.
    """
    return float(p_values[0]) if len(p_values) == 1 else min(1.0, 2 * float(np.mean(p_values)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that the chance of any false alarm among them stays below the level.

    Args:
        p_values: Of m comparisons.

    Returns:
        The corrected ones, in the same order; none is smaller than before.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
