"""Temperature scaling: one number per classifier, fitted on the validation split after training, that divides the logits.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2 and equation 9: the temperature is the one that gives the validation split the smallest mean
negative log-likelihood. Dividing keeps the order of the classes, so no answer changes.

Departures, for splits that say too little:
- The search stays within `LOWEST` and `HIGHEST`; where the likelihood rises up to a limit, that limit is taken and said.
- Where every row is answered right, smaller temperatures are always more likely and none is best: it stays 1. So it does where all classes score alike in every row.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorabel.data.types import LabelArray
from lorabel.errors import DataError

LOWEST, HIGHEST = 0.1, 10.0
# In the logarithm of the temperature: a thousandth of a percent, far below what rows can tell.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Fitted:
    """A temperature and how it came about.

    Attributes:
        temperature: From `LOWEST` to `HIGHEST`; 1 changes nothing.
        note: Why it could not be fitted freely, or None.
    """

    temperature: float
    note: str | None = None


def fit_temperature(labels: LabelArray, logits: NDArray[np.float64]) -> Fitted:
    """Find the temperature under which the true classes are most likely; of several labels, their presence and absence.

    Args:
        labels: Class ids (N,) or indicators (N, C), N at least 1.
        logits: (N, C), finite.

    Returns:
        The temperature.

    Raises:
        ValueError: No rows, or shapes that do not fit.
        DataError: Logits that are not finite.

    Source:
        Guo et al. 2017, equation 9.
    """
    from scipy.optimize import minimize_scalar

    if len(labels) == 0 or logits.shape[: labels.ndim] != labels.shape:
        raise ValueError(
            f"calibration: shapes do not fit, got {labels.shape} classes and {logits.shape} logits; expected (N,) or (N, C), and (N, C), N at least 1. Score the split first."
        )
    if not np.isfinite(logits).all():
        raise DataError("calibration: logits that are not finite, got NaN or infinity; expected numbers. Train again with a lower learning rate, or in fp32.")
    margins = _margins(labels, logits)
    if (logits == 0).all() if labels.ndim == 2 else (logits.max(axis=1) == logits.min(axis=1)).all():
        return Fitted(1.0, "all classes score alike in every row")
    if (margins > 0).all():
        return Fitted(1.0, "every validation row is answered right, so that no temperature is best")

    def mean_loss(log_temperature: float) -> float:
        return _mean_loss(labels, logits, math.exp(log_temperature))

    found = minimize_scalar(mean_loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded", options={"xatol": _TOLERANCE})
    # The search never touches its limits; a limit that is as good is where the likelihood still rises.
    for limit in (LOWEST, HIGHEST):
        if mean_loss(math.log(limit)) <= found.fun:
            return Fitted(limit, f"the likelihood rises up to the limit of {limit:g}")
    return Fitted(float(math.exp(found.x)))


def _margins(labels: LabelArray, logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much each right answer leads: of a row the true class before the best other, of a label its own side of 0."""
    if labels.ndim == 2:
        return np.where(labels == 1, logits, -logits)
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return np.asarray(logits[np.arange(len(labels)), labels] - others.max(axis=1))


def _mean_loss(labels: LabelArray, logits: NDArray[np.float64], temperature: float) -> float:
    """Mean negative log-likelihood, from the logits, so that no probability is rounded to 0."""
    scaled = logits / temperature
    if labels.ndim == 2:
        return float(np.logaddexp(0.0, np.where(labels == 1, -scaled, scaled)).mean())
    scaled -= scaled.max(axis=1, keepdims=True)
    return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean())
