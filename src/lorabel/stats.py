"""Intervals and comparisons: how sure a measured score is.

Source: Efron 1979, "Bootstrap methods: another look at the jackknife". Intervals are percentile intervals over seeded resamples of the evaluated rows, and of the seeds
where there are several. P-values: McNemar 1947 in its exact form, corrected by Holm 1979 where there are several comparisons.

Three seeds drawn with replacement spread too little: their means vary by (G - 1) / G of what they should, and the tails of so few are Student's, not the normal curve's. How far drawn
seeds lie from all of them is stretched accordingly (`stretch_of`); where rows hardly matter, an interval is then as wide as Student's over the seeds. It is measured on the rows as they
are: on resampled ones, what a seed's answers owe to single rows would count once more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
# Draws held in memory at once: 16 MB.
_DRAWN_AT_ONCE = 2_000_000


# How often each class was right, answered and true, three times (S, C) -> scores (S,).
CountScore = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Difference:
    """A paired comparison of two classifiers on the same rows.

    Attributes:
        mean: Score of a minus score of b.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided, of no difference; never 0.
    """

    mean: float
    low: float
    high: float
    p_value: float


def confusion_intervals(confusion: NDArray[np.int64], scores: Mapping[str, CountScore], seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of scores that depend on the confusion matrix alone.

    Resampling N rows with replacement is a multinomial draw over the cells of the matrix, so the cost does not grow with N. Of C² cells only those that are filled are drawn: with
    thousands of classes nearly all are empty.

    Args:
        confusion: (C, C) counts, true class by row.
        scores: Name -> function of counts.
        seed: Of the resamples.

    Returns:
        Name -> (low, high).
    """
    from scipy.sparse import csr_matrix

    classes = len(confusion)
    true, answered = np.nonzero(confusion)
    counts = confusion[true, answered]
    right = true == answered
    places = np.arange(len(counts))
    of_true, of_answered = (csr_matrix((np.ones(len(counts), dtype=np.int64), (places, one)), shape=(len(counts), classes)) for one in (true, answered))
    generator = np.random.default_rng(seed)
    at_once = max(1, min(RESAMPLES, _DRAWN_AT_ONCE // len(counts)))
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in scores}
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=min(at_once, RESAMPLES - start))
        hits, given, actual = drawn[:, right] @ of_true[right], drawn @ of_answered, drawn @ of_true
        for name, score in scores.items():
            found[name].append(score(hits, given, actual))
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


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; the deviation of one value is 0."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def resampled_scores(
    truth: NDArray[np.int64],
    answers: NDArray[np.int64],
    classes: int,
    scores: Mapping[str, CountScore],
    seed: int = 0,
    resamples: int = 1000,
    groups: Sequence[int] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Mean score over seeds, on resampled rows and resampled seeds.

    The rows of a resample depend on `seed` and N alone, so that two methods on the same rows are resampled together and their scores can be subtracted.

    Args:
        truth: (N,) true classes.
        answers: (S, N) answers of each seed.
        classes: C.
        scores: Name -> function of counts.
        seed: Of the resamples.
        resamples: Their number R.
        groups: As for `resampled_means`.

    Returns:
        Name -> (R,).

    Source: Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8 (two levels, both with replacement).
    """
    num_seeds, num_rows = answers.shape
    first = (classes * np.arange(num_seeds))[:, None]
    # What is right is counted by its class; what is wrong goes into a bin of its own, after the last.
    given_bins, right_bins = answers + first, np.where(answers == truth, answers + first, num_seeds * classes)

    def of_rows(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        hits, given = (
            np.bincount(bins[:, rows].ravel(), minlength=num_seeds * classes)[: num_seeds * classes].reshape(num_seeds, classes)
            for bins in (right_bins, given_bins)
        )
        actual = np.broadcast_to(np.bincount(truth[rows], minlength=classes), hits.shape)
        return {name: score(hits, given, actual) for name, score in scores.items()}

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
        Name -> (R,): mean over all groups on resampled rows, and how far the drawn groups lie from all of them on the rows as they are, stretched by `stretch_of` their number. So
        a score may lie a little outside its range.
    """
    of_rows, of_groups = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    spread = {name: group_means(values, groups) for name, values in scores(np.arange(num_rows)).items()}
    spread = {name: stretch_of(len(groups)) * (means - means.mean()) for name, means in spread.items()}
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        scored = scores(of_rows.integers(num_rows, size=num_rows))
        drawn = of_groups.integers(len(groups), size=len(groups))
        for name, values in scored.items():
            found.setdefault(name, []).append(float(group_means(values, groups).mean() + spread[name][drawn].mean()))
    return {name: np.array(values) for name, values in found.items()}


@cache
def stretch_of(groups: int) -> float:
    """By how much deviations of resampled groups are stretched, so that a 95 % interval over groups alone is as wide as Student's.

    Args:
        groups: G, at least 1.

    Returns:
        √(G / (G - 1)) times the 97.5 % quantile of Student's distribution with G - 1 degrees of freedom over that of the normal one: 9.2 for 2, 2.7 for 3, 1.2 for 10; 1 for a single
        one, of whose spread nothing is known.

    Source: Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 3.2 (narrowness bias; expanded percentile intervals).
    """
    from scipy.stats import norm, t

    return 1.0 if groups == 1 else float(np.sqrt(groups / (groups - 1)) * t.ppf(0.975, groups - 1) / norm.ppf(0.975))


def paired_difference(gaps: Callable[[NDArray[np.int64]], NDArray[np.float64]], seeds: int, num_rows: int, seed: int = 0, resamples: int = 2000) -> Difference:
    """Compare two classifiers on the same rows and seeds.

    Args:
        gaps: From drawn rows (N,) to score of a minus score of b of each seed (S,).
        seeds: S.
        num_rows: N.
        seed: Of the resamples.
        resamples: Their number.

    Returns:
        The difference, its interval over rows and seeds, and its p-value.
    """
    found = resampled_means([1] * seeds, num_rows, lambda rows: {"gap": gaps(rows)}, seed, resamples)["gap"]
    low, high = np.quantile(found, [0.025, 0.975])
    return Difference(float(gaps(np.arange(num_rows)).mean()), float(low), float(high), resampled_p_value(found))


def resampled_p_value(gaps: NDArray[np.float64]) -> float:
    """Twice the share of resamples on the smaller side of no difference; what was really drawn counts as one of them, so that it is never zero.

    Args:
        gaps: Difference in each resample (R,).
    """
    smaller = min((gaps <= 0).sum(), (gaps >= 0).sum())
    return min(1.0, 2 * float(smaller + 1) / (len(gaps) + 1))


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
