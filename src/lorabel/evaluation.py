"""Scores of a split: probabilities and true classes in, one result with intervals out.

Accuracy, F1 and the rest follow from the confusion matrix; the tests hold them against scikit-learn. They are computed here directly because the bootstrap
needs them for thousands of resampled matrices at once.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lorabel.data.types import LabelMap
from lorabel.errors import ConfigError, DataError
from lorabel.metrics.ece import error_of_bins, reliability_bins
from lorabel.metrics.proper import brier, log_loss
from lorabel.stats import confusion_intervals


class ClassScores(BaseModel):
    """Scores of one class, each in [0, 1]; `support` is its number of rows."""

    model_config = ConfigDict(frozen=True)

    precision: float
    recall: float
    f1: float
    support: int


class ReliabilityBin(BaseModel):
    """Rows whose answer has a probability in (low, high]; see `metrics.ece.Bin`."""

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class Answered(BaseModel):
    """What is left when unsure rows go unanswered.

    Attributes:
        threshold: Rows whose best probability lies below it are unanswered.
        n: Answered rows.
        coverage: Their share of all rows.
        accuracy: Share of them answered right; None where there is none.
    """

    model_config = ConfigDict(frozen=True)

    threshold: float
    n: int
    coverage: float
    accuracy: float | None


class EvalResult(BaseModel):
    """Scores of one split.

    Attributes:
        n: Rows.
        accuracy: Share of rows whose class was found.
        macro_f1: Mean F1 over all classes, absent ones counting 0.
        loss: Mean cross-entropy, without smoothing.
        log_loss: The same as the metric of that name has it: probabilities below 2.2e-16 count as that.
        brier: Brier score, summed over classes, 0 to 2.
        ece: Expected calibration error, 0 to 1.
        reliability: The bins of `ece`, empty ones left out, lowest first.
        interval: Score name -> [low, high], 95 % bootstrap.
        per_class: Class name -> scores.
        confusion_matrix: Counts, true class by row.
        labels: Class names in the matrix's order.

    Results written before there were `log_loss`, `brier`, `ece` and `reliability` hold None there.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    accuracy: float
    macro_f1: float
    loss: float
    log_loss: float | None = None
    brier: float | None = None
    ece: float | None = None
    reliability: list[ReliabilityBin] | None = None
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
        DataError: Probabilities that are not finite.
    """
    if len(y_true) == 0 or y_prob.shape != (len(y_true), len(labels)):
        raise ValueError(
            f"evaluation: shapes do not fit, got {y_prob.shape} for {len(y_true)} rows and {len(labels)} classes; expected (rows, classes). Evaluate at least one row."
        )
    if not np.isfinite(y_prob).all():
        raise DataError(
            "evaluation: probabilities that are not finite, got NaN or infinity; expected numbers. Use --precision fp32, or train again with a lower learning rate."
        )
    classes = len(labels)
    confusion = np.bincount(y_true * classes + y_prob.argmax(axis=1), minlength=classes * classes).reshape(classes, classes)
    precision, recall, f1 = per_class_scores(confusion[None])
    bins = reliability_bins(y_true, y_prob)
    likelihood = y_prob[np.arange(len(y_true)), y_true]
    return EvalResult(
        n=len(y_true),
        accuracy=float(accuracy_of(confusion[None])[0]),
        macro_f1=float(f1.mean()),
        loss=float(-np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean()),
        log_loss=log_loss(y_true, y_prob),
        brier=brier(y_true, y_prob),
        ece=error_of_bins(bins),
        reliability=[ReliabilityBin(**dataclasses.asdict(one)) for one in bins],
        interval=confusion_intervals(confusion, {"accuracy": accuracy_of, "macro_f1": lambda m: per_class_scores(m)[2].mean(axis=1)}, seed),
        per_class={
            name: ClassScores(precision=float(precision[0, i]), recall=float(recall[0, i]), f1=float(f1[0, i]), support=int(confusion[i].sum()))
            for i, name in enumerate(labels.names)
        },
        confusion_matrix=confusion.tolist(),
        labels=list(labels.names),
    )


def answered_rows(y_true: NDArray[np.int64], y_prob: NDArray[np.float64], threshold: float) -> Answered:
    """Coverage and accuracy where rows below a probability go unanswered.

    Args:
        y_true: (N,) class ids, N at least 1.
        y_prob: (N, C) probabilities.
        threshold: Smallest probability of an answer, over 0 and up to 1.

    Source:
        Chow 1970, "On Optimum Recognition Error and Reject Tradeoff".
    """
    is_answered = y_prob.max(axis=1) >= threshold
    count = int(is_answered.sum())
    is_right = y_prob.argmax(axis=1) == y_true
    return Answered(threshold=threshold, n=count, coverage=count / len(y_true), accuracy=float(is_right[is_answered].mean()) if count else None)


def check_threshold(threshold: float | None, where: str = "--abstain-below") -> None:
    """Refuse a threshold that is no probability.

    Args:
        threshold: Smallest probability of an answer, or None.
        where: Names it in the message.

    Raises:
        ConfigError: Not over 0 and up to 1.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ConfigError(f"{where}: not a probability, got {threshold}; expected a number over 0 and up to 1. Try 0.8.")


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
