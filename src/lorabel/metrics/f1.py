"""F1 averaged over classes in three ways, by scikit-learn; a class that neither occurs nor is answered counts 0."""

import numpy as np

from lorabel.metrics.base import Labels, Probabilities, answers, metric
from lorabel.registry import METRICS

_SOURCE = "van Rijsbergen 1979, Information Retrieval, chapter 7"


@METRICS.register("macro_f1")
@metric(direction="higher", low=0.0, high=1.0, source=_SOURCE)
def macro_f1(y_true: Labels, y_prob: Probabilities) -> float:
    """Mean F1 over all classes, each counting alike."""
    return _f1(y_true, y_prob, "macro")


@METRICS.register("micro_f1")
@metric(direction="higher", low=0.0, high=1.0, source=_SOURCE)
def micro_f1(y_true: Labels, y_prob: Probabilities) -> float:
    """F1 of all decisions put together; with one class per row it equals accuracy."""
    return _f1(y_true, y_prob, "micro")


@METRICS.register("weighted_f1")
@metric(direction="higher", low=0.0, high=1.0, source=_SOURCE)
def weighted_f1(y_true: Labels, y_prob: Probabilities) -> float:
    """Mean F1 over classes, each counting by its rows."""
    return _f1(y_true, y_prob, "weighted")


def _f1(y_true: Labels, y_prob: Probabilities, average: str) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(y_true, answers(y_prob), labels=np.arange(y_prob.shape[1]), average=average, zero_division=0))
