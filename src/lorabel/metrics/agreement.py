"""Scores of the answers alone: accuracy, balanced accuracy, Matthews correlation; all by scikit-learn."""

import warnings

import numpy as np

from lorabel.metrics.base import Labels, Probabilities, answers, metric
from lorabel.registry import METRICS


@METRICS.register("accuracy")
@metric(direction="higher", low=0.0, high=1.0, source="share of rows whose class was found")
def accuracy(y_true: Labels, y_prob: Probabilities) -> float:
    """Share of rows whose most probable class is the true one."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(y_true, answers(y_prob)))


@METRICS.register("balanced_accuracy")
@metric(direction="higher", low=0.0, high=1.0, source="Brodersen et al. 2010, The Balanced Accuracy and Its Posterior Distribution")
def balanced_accuracy(y_true: Labels, y_prob: Probabilities) -> float:
    """Mean recall over the classes that occur; a class without rows has no recall and is left out."""
    from sklearn.metrics import recall_score

    return float(recall_score(y_true, answers(y_prob), labels=np.unique(y_true), average="macro"))


@METRICS.register("mcc")
@metric(
    direction="higher", low=-1.0, high=1.0, source="Gorodkin 2004, Comparing two K-category assignments by a K-category correlation coefficient, equation 8"
)
def mcc(y_true: Labels, y_prob: Probabilities) -> float:
    """Matthews correlation of answers and true classes; 0 where either holds one class only."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        # A split and answers of one class alone: the value, 0, says it already.
        warnings.filterwarnings("ignore", message="A single label was found")
        return float(matthews_corrcoef(y_true, answers(y_prob)))
