"""Per-label thresholds of a multi-label classifier, chosen on the validation split after training.

Source: Yang 2001, "A Study on Thresholding Strategies for Text Categorization" (SCut): each label's threshold is the one with the best F1 on the validation split. That choice
maximises macro-F1, whose labels do not depend on each other (Lipton et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure").

Departures, for labels of which the split says too little:
- A threshold lies half-way between two neighbouring probabilities of the split, not on one of them.
- With fewer than `LEAST_ROWS` rows that have the label, its threshold would be that of a handful of texts: it is chosen with all such labels together instead (their decisions
  in one pool), and is one half where even these are too few.
"""

import numpy as np
from numpy.typing import NDArray

from lorabel.inference.answers import HALF

LEAST_ROWS = 10


def fit_thresholds(labels: NDArray[np.uint8], found: NDArray[np.float64]) -> tuple[float, ...]:
    """The probability from which each label is given.

    Args:
        labels: Indicators (N, C), N at least 1.
        found: Probabilities (N, C).

    Returns:
        C thresholds, each from 0 to 1.

    Raises:
        ValueError: No rows, or shapes that do not fit.
    """
    if len(labels) == 0 or labels.shape != found.shape:
        raise ValueError(f"thresholds: shapes do not fit, got {labels.shape} labels and {found.shape} probabilities; expected the same. Score the split first.")
    counts = labels.sum(axis=0, dtype=np.int64)
    rare = counts < LEAST_ROWS
    pooled = best_threshold(labels[:, rare].ravel(), found[:, rare].ravel()) if counts[rare].sum() >= LEAST_ROWS else HALF
    return tuple(pooled if rare[c] else best_threshold(labels[:, c], found[:, c]) for c in range(labels.shape[1]))


def best_threshold(present: NDArray[np.uint8], found: NDArray[np.float64]) -> float:
    """The threshold with the best F1; of equals the one nearest to one half.

    Args:
        present: Where the label is true (N,), at least once.
        found: Its probability (N,).
    """
    order = np.argsort(-found, kind="stable")
    sorted_found, hits = found[order], np.cumsum(present[order], dtype=np.float64)
    # Giving the label to the first i + 1 rows is possible where the next row's probability is smaller.
    is_end = np.append(sorted_found[:-1] > sorted_found[1:], True)
    f1 = np.where(is_end, 2 * hits / (np.arange(1, len(found) + 1) + hits[-1]), -1.0)
    middles = (sorted_found + np.append(sorted_found[1:], 0.0)) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(middles[best[np.argmin(np.abs(middles[best] - HALF))]])
