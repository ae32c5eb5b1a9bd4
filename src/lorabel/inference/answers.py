"""From class scores to probabilities to labels: the last step of every answer, the same in training, evaluation and prediction.

One label per text: a softmax, and the most probable class. Several: a sigmoid for each label, which is given from its threshold up. The temperature divides logits before either.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorabel.data.types import LabelArray, TaskKind

HALF = 0.5


@dataclass(frozen=True)
class AnswerRule:
    """How a classifier answers.

    Attributes:
        task: One label per text, or several.
        temperature: Divides logits; positive.
        thresholds: Several labels: probability from which each is given (C,); None for one half everywhere.
    """

    task: TaskKind = "single_label"
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    def probabilities(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each class, (N, C) -> (N, C); rows add up to 1 where a text has one label."""
        return probabilities(logits, self.temperature) if self.task == "single_label" else label_probabilities(logits, self.temperature)

    def answers(self, found: NDArray[np.float64]) -> LabelArray:
        """Labels from probabilities (N, C): class ids (N,), or indicators (N, C)."""
        return np.asarray(found.argmax(axis=1)) if self.task == "single_label" else given_labels(found, self.thresholds)


def probabilities(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax of logits over temperature, (N, C) -> (N, C)."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    powers = np.exp(scaled)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def label_probabilities(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Sigmoid of logits over temperature, (N, C) -> (N, C)."""
    from scipy.special import expit

    return np.asarray(expit(logits / temperature))


def given_labels(found: NDArray[np.float64], thresholds: tuple[float, ...] | None = None) -> NDArray[np.uint8]:
    """Labels whose probability reaches their threshold, as indicators (N, C).

    Args:
        found: Probabilities (N, C).
        thresholds: One per label, or None for one half.
    """
    return (found >= (HALF if thresholds is None else np.asarray(thresholds))).astype(np.uint8)
