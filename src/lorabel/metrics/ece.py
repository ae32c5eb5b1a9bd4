"""Expected calibration error, and the bins it is made of.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equations 1 to 3: rows go into bins of equal width by the probability of their answer,
and the distance between accuracy and mean probability is averaged over bins by their rows. Departure: none; 15 bins, as in their tables. Own code, because the
library has no such score.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorabel.metrics.base import Labels, Probabilities, answers, metric
from lorabel.registry import METRICS

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Rows whose answer has a probability in (low, high].

    Attributes:
        low: Exclusive.
        high: Inclusive.
        n: Rows, at least 1.
        confidence: Their mean probability.
        accuracy: Share of them answered right.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability_bins(y_true: Labels, y_prob: Probabilities, bins: int = BINS) -> list[Bin]:
    """The bins of a reliability diagram, empty ones left out.

    Args:
        y_true: (N,) class ids.
        y_prob: (N, C) probabilities.
        bins: Of equal width, over 0 to 1.

    Returns:
        At most `bins` bins, lowest first.
    """
    return _binned(y_prob.max(axis=1), answers(y_prob) == y_true, bins)


def label_bins(y_true: NDArray[np.uint8], y_prob: Probabilities, bins: int = BINS) -> list[Bin]:
    """The bins where texts have several labels: every label of every row is a decision, its probability held against whether it is there.

    Args:
        y_true: Indicators (N, C).
        y_prob: (N, C) probabilities.
        bins: Of equal width, over 0 to 1.

    Returns:
        At most `bins` bins, lowest first; `n` counts decisions.
    """
    return _binned(y_prob.ravel(), y_true.ravel() == 1, bins)


def _binned(confidence: NDArray[np.float64], is_right: NDArray[np.bool_], bins: int) -> list[Bin]:
    edges = np.linspace(0.0, 1.0, bins + 1)
    # Rounding may carry a probability over 1; it belongs to the last bin.
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    confidences = np.bincount(place, weights=confidence, minlength=bins)
    hits = np.bincount(place, weights=is_right, minlength=bins)
    return [
        Bin(float(edges[i]), float(edges[i + 1]), int(counts[i]), float(confidences[i] / counts[i]), float(hits[i] / counts[i])) for i in np.flatnonzero(counts)
    ]


def error_of_bins(bins: list[Bin]) -> float:
    """The calibration error of bins: mean distance of accuracy and confidence, by rows.

    Args:
        bins: At least one.
    """
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / sum(one.n for one in bins)


@METRICS.register("ece")
@metric(direction="lower", low=0.0, high=1.0, source="Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3")
def ece(y_true: Labels, y_prob: Probabilities) -> float:
    """Expected calibration error in 15 bins of equal width."""
    return error_of_bins(reliability_bins(y_true, y_prob))
