"""Scores of a split: probabilities and true classes in, one result with intervals out; the form of the classes says whether a text has one label or several.

Accuracy, F1 and the rest follow from the confusion matrix; the tests hold them against scikit-learn. They are computed here directly because the bootstrap
needs them for thousands of resampled matrices at once.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lorabel.data.types import LabelArray, LabelMap, TaskKind, class_ids, indicators, label_sets, task_of
from lorabel.errors import ConfigError, DataError
from lorabel.inference.answers import given_labels
from lorabel.metrics.ece import Bin, error_of_bins, label_bins, reliability_bins
from lorabel.metrics.multi_label import f1_of_counts, is_exact, label_counts, macro_f1_of_counts, ranking_precisions, share
from lorabel.metrics.proper import brier, log_loss
from lorabel.stats import CountScore, confusion_intervals, row_intervals


class ClassScores(BaseModel):
    """Scores of one class, each in [0, 1]; `support` is its number of rows, `threshold` the probability from which a label is given, where texts have several."""

    model_config = ConfigDict(frozen=True)

    precision: float
    recall: float
    f1: float
    support: int
    threshold: float | None = None


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
        task: One label per text, or several.
        accuracy: Share of rows whose class was found; of several labels, share of rows whose labels were found exactly (subset accuracy).
        macro_f1: Mean F1 over all classes, absent ones counting 0.
        micro_f1: Of several labels, F1 of all decisions put together; else None, since it equals accuracy.
        lrap: Of several labels, label ranking average precision; else None.
        loss: Mean cross-entropy, without smoothing; of several labels the mean over labels too.
        log_loss: The same as the metric of that name has it: probabilities below 2.2e-16 count as that.
        brier: Brier score, summed over classes, 0 to 2; of several labels, up to their number.
        ece: Expected calibration error, 0 to 1; of several labels, over all decisions, a label's probability against its presence.
        reliability: The bins of `ece`, empty ones left out, lowest first.
        interval: Score name -> [low, high], 95 % bootstrap.
        per_class: Class name -> scores.
        confusion_matrix: Counts, true class by row; None where texts have several labels.
        labels: Class names in the matrix's order.

    Results written before there were `log_loss`, `brier`, `ece` and `reliability` hold None there.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    task: TaskKind = "single_label"
    accuracy: float
    macro_f1: float
    micro_f1: float | None = None
    lrap: float | None = None
    loss: float
    log_loss: float | None = None
    brier: float | None = None
    ece: float | None = None
    reliability: list[ReliabilityBin] | None = None
    interval: dict[str, tuple[float, float]]
    per_class: dict[str, ClassScores]
    confusion_matrix: list[list[int]] | None
    labels: list[str]


def evaluate_probabilities(
    y_true: LabelArray,
    y_prob: NDArray[np.float64],
    labels: LabelMap,
    seed: int = 0,
    thresholds: tuple[float, ...] | None = None,
    answers: LabelArray | None = None,
) -> EvalResult:
    """Score predictions.

    Args:
        y_true: Class ids (N,) or indicators (N, C), N at least 1.
        y_prob: (N, C) probabilities.
        labels: The C classes.
        seed: Of the bootstrap.
        thresholds: Probability from which each of several labels is given (C,), or None for one half.
        answers: Of several labels, those that were given (N, C), where no one set of thresholds says it.

    Returns:
        The scores.

    Raises:
        ValueError: No rows, or shapes that do not fit.
        DataError: Probabilities that are not finite.
    """
    if len(y_true) == 0 or y_prob.shape != (len(y_true), len(labels)) or y_true.shape[1:] not in ((), (len(labels),)):
        raise ValueError(
            f"evaluation: shapes do not fit, got {y_prob.shape} for {len(y_true)} rows and {len(labels)} classes; expected (rows, classes). Evaluate at least one row."
        )
    if not np.isfinite(y_prob).all():
        raise DataError(
            "evaluation: probabilities that are not finite, got NaN or infinity; expected numbers. Use --precision fp32, or train again with a lower learning rate."
        )
    if task_of(y_true) == "single_label":
        return _evaluate_classes(class_ids(y_true), y_prob, labels, seed)
    y_pred = given_labels(y_prob, thresholds) if answers is None else indicators(answers)
    result = _evaluate_labels(indicators(y_true), y_pred, y_prob, labels, seed)
    if answers is not None:
        return result
    used = (0.5,) * len(labels) if thresholds is None else thresholds
    named = zip(result.per_class.items(), used, strict=True)
    return result.model_copy(update={"per_class": {name: scores.model_copy(update={"threshold": one}) for (name, scores), one in named}})


def _evaluate_classes(y_true: NDArray[np.int64], y_prob: NDArray[np.float64], labels: LabelMap, seed: int) -> EvalResult:
    """One label per text: everything follows from the confusion matrix."""
    classes = len(labels)
    confusion = np.bincount(y_true * classes + y_prob.argmax(axis=1), minlength=classes * classes).reshape(classes, classes)
    precision, recall, f1 = per_class_scores(confusion[None])
    bins = reliability_bins(y_true, y_prob)
    return EvalResult(
        n=len(y_true),
        accuracy=float(accuracy_of(confusion[None])[0]),
        macro_f1=float(f1.mean()),
        loss=mean_loss(y_true, y_prob),
        log_loss=log_loss(y_true, y_prob),
        brier=brier(y_true, y_prob),
        ece=error_of_bins(bins),
        reliability=_as_results(bins),
        interval=confusion_intervals(confusion, count_scores(confusion.sum(axis=0) + confusion.sum(axis=1) > 0), seed),
        per_class={
            name: ClassScores(precision=float(precision[0, i]), recall=float(recall[0, i]), f1=float(f1[0, i]), support=int(confusion[i].sum()))
            for i, name in enumerate(labels.names)
        },
        confusion_matrix=confusion.tolist(),
        labels=list(labels.names),
    )


def _evaluate_labels(y_true: NDArray[np.uint8], y_pred: NDArray[np.uint8], y_prob: NDArray[np.float64], labels: LabelMap, seed: int) -> EvalResult:
    """Several labels per text: each is a decision of its own; rows are resampled for the intervals."""
    hits, given, actual = label_counts(y_true, y_pred)
    precision, recall, f1 = share(hits, given), share(hits, actual), f1_of_counts(hits, given, actual)
    bins = label_bins(y_true, y_prob)
    exact, ranked, seen = is_exact(y_true, y_pred), ranking_precisions(y_true, y_prob), given + actual > 0

    def resampled(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        # (S, N) times (N, C): how often each label is right, given and true in each resample.
        right, answered, true = (weights @ one.astype(np.float64) for one in (y_true & y_pred, y_pred, y_true))
        return {
            "accuracy": weights @ exact / len(exact),
            "macro_f1": macro_f1_of_counts(right, answered, true, seen),
            "micro_f1": f1_of_counts(right.sum(axis=1), answered.sum(axis=1), true.sum(axis=1)),
            "lrap": weights @ ranked / len(ranked),
        }

    return EvalResult(
        n=len(y_true),
        task="multi_label",
        accuracy=float(exact.mean()),
        macro_f1=float(f1.mean()),
        micro_f1=float(f1_of_counts(hits.sum(), given.sum(), actual.sum())),
        lrap=float(ranked.mean()),
        loss=mean_loss(y_true, y_prob),
        log_loss=mean_loss(y_true, y_prob, np.finfo(np.float64).eps),
        brier=float(((y_prob - y_true) ** 2).sum(axis=1).mean()),
        ece=error_of_bins(bins),
        reliability=_as_results(bins),
        interval=row_intervals(len(y_true), resampled, seed),
        per_class={
            name: ClassScores(precision=float(precision[i]), recall=float(recall[i]), f1=float(f1[i]), support=int(actual[i]))
            for i, name in enumerate(labels.names)
        },
        confusion_matrix=None,
        labels=list(labels.names),
    )


def _as_results(bins: list[Bin]) -> list[ReliabilityBin]:
    return [ReliabilityBin(**dataclasses.asdict(one)) for one in bins]


def mean_loss(y_true: LabelArray, y_prob: NDArray[np.float64], least: float = float(np.finfo(np.float64).tiny)) -> float:
    """Mean cross-entropy; of several labels, the mean over labels too.

    Args:
        y_true: Class ids (N,) or indicators (N, C).
        y_prob: (N, C) probabilities.
        least: Smaller probabilities count as this.
    """
    if y_true.ndim == 2:
        likelihood = np.where(y_true == 1, y_prob, 1 - y_prob)
    else:
        likelihood = y_prob[np.arange(len(y_true)), y_true]
    return float(-np.log(np.maximum(likelihood, least)).mean())


def calibration_error(y_true: LabelArray, y_prob: NDArray[np.float64]) -> float:
    """Expected calibration error, as in `EvalResult.ece`.

    Args:
        y_true: Class ids (N,) or indicators (N, C).
        y_prob: (N, C) probabilities.
    """
    return error_of_bins(_bins(y_true, y_prob))


def reliability(y_true: LabelArray, y_prob: NDArray[np.float64]) -> list[ReliabilityBin]:
    """The bins of a reliability diagram, as in `EvalResult.reliability`.

    Args:
        y_true: Class ids (N,) or indicators (N, C).
        y_prob: (N, C) probabilities.
    """
    return _as_results(_bins(y_true, y_prob))


def _bins(y_true: LabelArray, y_prob: NDArray[np.float64]) -> list[Bin]:
    return label_bins(indicators(y_true), y_prob) if y_true.ndim == 2 else reliability_bins(class_ids(y_true), y_prob)


def accuracy_and_macro_f1(y_true: LabelArray, y_prob: NDArray[np.float64], thresholds: tuple[float, ...] | None = None) -> tuple[float, float]:
    """The two scores that training goes by, without intervals.

    Args:
        y_true: Class ids (N,) or indicators (N, C).
        y_prob: (N, C) probabilities.
        thresholds: As in `evaluate_probabilities`.
    """
    if y_true.ndim == 2:
        present, y_pred = indicators(y_true), given_labels(y_prob, thresholds)
        return float(is_exact(present, y_pred).mean()), float(f1_of_counts(*label_counts(present, y_pred)).mean())
    classes = y_prob.shape[1]
    confusion = np.bincount(y_true * classes + y_prob.argmax(axis=1), minlength=classes * classes).reshape(1, classes, classes)
    return float(accuracy_of(confusion)[0]), float(per_class_scores(confusion)[2].mean())


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


# Of the rows, all but one in two hundred: a classifier that has learned nothing may still be pulled over by a few odd texts.
_COLLAPSED = 0.995


def collapse(y_true: LabelArray, answers: LabelArray, labels: LabelMap) -> str | None:
    """What is wrong where a classifier gives (nearly) every text the same answer though the texts differ in their labels; None where it does not.

    Args:
        y_true: Class ids (N,) or indicators (N, C), N at least 1.
        answers: Its answers, in the same form.
        labels: Names of the classes.
    """
    sets, counts = np.unique(label_sets(answers), return_counts=True)
    share = float(counts.max() / len(answers))
    truth = float(np.unique(label_sets(y_true), return_counts=True)[1].max() / len(y_true))
    if share < _COLLAPSED or truth >= _COLLAPSED:
        return None
    row = int(np.flatnonzero(label_sets(answers) == sets[counts.argmax()])[0])
    names = next(labels.names_of(answers[row : row + 1]))
    answer = " and ".join(repr(name) for name in names) or "no label"
    return (
        f"The classifier has collapsed: {100 * share:.1f} % of the validation texts get the same answer, {answer}, whatever they say. "
        "It has learned nothing or lost it: try a lower learning rate, more epochs, or another seed"
    )


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


def check_abstaining(threshold: float | None, task: TaskKind, where: str = "--abstain-below") -> None:
    """Refuse to leave texts unanswered whose labels have thresholds of their own.

    Args:
        threshold: Smallest probability of an answer, or None.
        task: One label per text, or several.
        where: Names it in the message.

    Raises:
        ConfigError: A threshold, and several labels.
    """
    if threshold is not None and task == "multi_label":
        raise ConfigError(f"{where}: this classifier gives several labels, each from its own threshold up, got {threshold}; expected none. Leave it out.")


def accuracy_of(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Accuracy of each matrix, (S, C, C) -> (S,)."""
    return np.asarray(np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2)))


def count_scores(seen: NDArray[np.bool_]) -> dict[str, CountScore]:
    """Accuracy and macro-F1 as functions of how often each class was right, answered and true.

    Args:
        seen: (C,) or (S, C), as in `macro_f1_of_counts`.
    """
    return {
        "accuracy": lambda hits, _given, actual: share(hits.sum(axis=-1), actual.sum(axis=-1)),
        "macro_f1": lambda hits, given, actual: macro_f1_of_counts(hits, given, actual, seen),
    }


def per_class_scores(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 of each class, (S, C, C) -> three times (S, C); 0 where undefined."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    predicted, actual = confusion.sum(axis=1), confusion.sum(axis=2)
    return share(hits, predicted), share(hits, actual), f1_of_counts(hits, predicted, actual)
