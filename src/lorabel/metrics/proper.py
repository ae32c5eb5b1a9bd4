"""Proper scoring rules: best in expectation when the probabilities are the true ones."""

import math

import numpy as np

from lorabel.metrics.base import Labels, Probabilities, metric
from lorabel.registry import METRICS


@METRICS.register("log_loss")
@metric(direction="lower", low=0.0, high=math.inf, source="Good 1952, Rational Decisions, section 8")
def log_loss(y_true: Labels, y_prob: Probabilities) -> float:
    """Mean negative natural logarithm of the true class's probability, by scikit-learn, which counts probabilities below 2.2e-16 as that."""
    from sklearn.metrics import log_loss as library_log_loss

    return float(library_log_loss(y_true, y_prob, labels=np.arange(y_prob.shape[1])))


@METRICS.register("brier")
@metric(direction="lower", low=0.0, high=2.0, source="Brier 1950, Verification of Forecasts Expressed in Terms of Probability, equation 2")
def brier(y_true: Labels, y_prob: Probabilities) -> float:
    """Mean squared distance between the probabilities and the true class's unit vector, summed over classes.

    Own code: the library scores more than two classes only in its newest releases, and halves the sum for two.
    """
    wanted = np.zeros_like(y_prob)
    wanted[np.arange(len(y_true)), y_true] = 1.0
    return float(((y_prob - wanted) ** 2).sum(axis=1).mean())
