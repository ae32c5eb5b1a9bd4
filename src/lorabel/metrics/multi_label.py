"""Scores of multi-label answers: indicators of true and given labels in, counts and shares out.

They are not in the registry, whose metrics take one class per row. Departure from the library: a label that is neither true nor given in any row has an F1 of 0, as it counts there
with its default setting too, but without a warning.
"""

import numpy as np
from numpy.typing import NDArray

Indicators = NDArray[np.uint8]
Counts = NDArray[np.float64]


def label_counts(y_true: Indicators, y_pred: Indicators) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each label the rows where it was rightly given, given, and true: three times (C,).

    Args:
        y_true: (N, C).
        y_pred: (N, C).
    """
    return (y_true & y_pred).sum(axis=0, dtype=np.int64), y_pred.sum(axis=0, dtype=np.int64), y_true.sum(axis=0, dtype=np.int64)


def f1_of_counts(hits: NDArray[np.generic], given: NDArray[np.generic], actual: NDArray[np.generic]) -> NDArray[np.float64]:
    """F1 from counts of any one shape; 0 where undefined."""
    return share(2 * np.asarray(hits, dtype=np.float64), np.asarray(given) + np.asarray(actual))


def macro_f1_of_counts(hits: NDArray[np.generic], given: NDArray[np.generic], actual: NDArray[np.generic], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean F1 over classes, of resampled rows: a class that a resample happens to leave out has no F1 there and is left out of its mean.

    Were it to count 0, resamples of few rows per class would lie below the score that they are drawn around: a perfect classifier's interval would not hold 1.

    Args:
        hits: How often each class was right, (..., C).
        given: How often it was answered, (..., C).
        actual: How often it was true, (..., C).
        seen: Whether it is answered or true in any of the rows that are drawn from, broadcast to (..., C); one that is not counts 0 everywhere, as it does in the score itself.

    Returns:
        (...).
    """
    whole = np.asarray(given) + np.asarray(actual)
    counted = (whole > 0) | ~seen
    return np.asarray(share(f1_of_counts(hits, given, actual).sum(axis=-1), counted.sum(axis=-1)))


def share(part: NDArray[np.generic], whole: NDArray[np.generic]) -> NDArray[np.float64]:
    """A quotient of counts; 0 where undefined."""
    numerator = np.asarray(part, dtype=np.float64)
    return np.asarray(np.divide(numerator, whole, out=np.zeros_like(numerator), where=np.asarray(whole) > 0))


def is_exact(y_true: Indicators, y_pred: Indicators) -> NDArray[np.bool_]:
    """Rows whose labels were found exactly (N,); their share is the subset accuracy."""
    return np.asarray((y_true == y_pred).all(axis=1))


def ranking_precisions(y_true: Indicators, y_prob: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row, the mean over its true labels of the share of true ones among those ranked at least as high, in (0, 1]; their mean is the label ranking average precision.

    Args:
        y_true: (N, C).
        y_prob: (N, C).

    Returns:
        (N,); 1 for a row without labels, or with all of them.

    Source: Tsoumakas et al. 2010, "Mining Multi-label Data", section 7.1.2. scikit-learn's function of the name gives the mean alone.
    """
    from scipy.stats import rankdata

    is_true = y_true.astype(bool)
    among_all = rankdata(-y_prob, method="max", axis=1)
    among_true = rankdata(np.where(is_true, -y_prob, np.inf), method="max", axis=1)
    count = is_true.sum(axis=1)
    precision = np.where(is_true, among_true / among_all, 0.0).sum(axis=1) / np.maximum(count, 1)
    return np.asarray(np.where(count == 0, 1.0, precision))
