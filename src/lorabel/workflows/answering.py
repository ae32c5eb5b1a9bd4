"""How a trained classifier will answer, settled on its validation split: temperature, thresholds, and the score that training goes by."""

import numpy as np
from numpy.typing import NDArray

from lorabel.config import RunConfig
from lorabel.data.types import LabelArray, TaskKind, indicators
from lorabel.inference.answers import AnswerRule, label_probabilities
from lorabel.thresholds import fit_thresholds
from lorabel.workflows.preparation import Prepared


def best_metric(config: RunConfig, task: TaskKind) -> str:
    """The validation score that chooses the kept checkpoint: as set, else accuracy, or macro-F1 where texts have several labels and few are found exactly.

    Args:
        config: The settings.
        task: One label per text, or several.
    """
    chosen = config.training.best_metric
    return chosen if chosen != "auto" else "accuracy" if task == "single_label" else "macro_f1"


def answer_rule(prepared: Prepared, labels: LabelArray, logits: NDArray[np.float64], temperature: float) -> AnswerRule:
    """How class scores become labels, thresholds chosen on a validation split's where there are any.

    Args:
        prepared: The run.
        labels: Of the validation split: class ids (N,) or indicators (N, C).
        logits: Its class scores (N, C).
        temperature: Divides logits.
    """
    thresholds = None
    if prepared.data.task == "multi_label" and prepared.config.training.tune_thresholds and np.isfinite(logits).all():
        thresholds = fit_thresholds(indicators(labels), label_probabilities(logits, temperature))
    return AnswerRule(prepared.data.task, temperature, thresholds)
