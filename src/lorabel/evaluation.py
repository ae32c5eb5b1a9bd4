"""Scores of a split: probabilities and true classes in, one result with intervals out.

Accuracy, F1 and the rest follow from the confusion matrix; the tests hold them against scikit-learn. They are computed here directly because the bootstrap
needs them for thousands of resampled matrices at once.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lorabel.data.types import LabelMap
from lorabel.stats import confusion_intervals


class ClassScores(BaseModel):
    """Scores of one class, each in [0, 1]; `support` is its number of rows."""

    model_config = ConfigDict(frozen=True)

    precision: float
    recall: float
    f1: float
    support: int


class EvalResult(BaseModel):
    """Scores of one split.

    Attributes:
        n: Rows.
        accuracy: Share of rows whose class was found.
        macro_f1: Mean F1 over all classes, absent ones counting 0.
        loss: Mean cross-entropy, without smoothing.
        interval: Score name -> [low, high], 95 % bootstrap.
        per_class: Class name -> scores.
        confusion_matrix: Counts, true class by row.
        labels: Class names in the matrix's order.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    accuracy: float
    macro_f1: float
    loss: float
    interval: dict[str, tuple[float, float]]
    per_class: dict[str, ClassScores]
    confusion_matrix: list[list[int]]
    labels: list[str]


def evaluate_probabilities(y_true: NDArray[np.int64], y_prob: NDArray[np.float64], labels: LabelMap, seed: int = 0) -> EvalResult:
    """Score predictions.

    Args:
        y_true: (N,) class ids, N at least 1.
        y_prob: (N, C) probabilities.
        labels: The C classes.
        seed: Of the bootstrap.

    Returns:
        The scores.

    Raises:
        ValueError: No rows, or shapes that do not fit.
    """
    if len(y_true) == 0 or y_prob.shape != (len(y_true), len(labels)):
        raise ValueError(
            f"evaluation: shapes do not fit, got {y_prob.shape} for {len(y_true)} rows and {len(labels)} classes; expected (rows, classes). Evaluate at least one row."
        )
    classes = len(labels)
    confusion = np.bincount(y_true * classes + y_prob.argmax(axis=1), minlength=classes * classes).reshape(classes, classes)
    precision, recall, f1 = per_class_scores(confusion[None])
    likelihood = y_prob[np.arange(len(y_true)), y_true]
    return EvalResult(
        n=len(y_true),
        accuracy=float(accuracy_of(confusion[None])[0]),
        macro_f1=float(f1.mean()),
        loss=float(-np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean()),
        interval=confusion_intervals(confusion, {"accuracy": accuracy_of, "macro_f1": lambda m: per_class_scores(m)[2].mean(axis=1)}, seed),
        per_class={
            name: ClassScores(precision=float(precision[0, i]), recall=float(recall[0, i]), f1=float(f1[0, i]), support=int(confusion[i].sum()))
            for i, name in enumerate(labels.names)
        },
        confusion_matrix=confusion.tolist(),
        labels=list(labels.names),
    )


def accuracy_of(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Accuracy of each matrix, (S, C, C) -> (S,)."""
    return np.asarray(np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2)))


def per_class_scores(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 of each class, (S, C, C) -> three times (S, C); 0 where undefined."""
    hits = np.diagonal(confusion, axis1=1, axis2=2).astype(np.float64)
    predicted, actual = confusion.sum(axis=1), confusion.sum(axis=2)

    def share(part: NDArray[np.float64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    return share(hits, predicted), share(hits, actual), share(2 * hits, predicted + actual)
