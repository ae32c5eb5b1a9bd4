"""What a metric is: a function of true classes and probabilities, with its direction, range and source.

Decisions:
- Every metric takes the same two arrays, so that a caller can go through the registry; those that score answers alone take the most probable class.
- The classes are the columns of the probabilities, whether or not the split holds all of them.
- The library that computes most of them is imported when one is called: command lines start without it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """A score of predictions.

    Attributes:
        function: (N,) class ids and (N, C) probabilities in, the score out.
        direction: Which way is better.
        low: Smallest value it can take.
        high: Largest value; infinity where there is none.
        source: Paper or book that defines it.
    """

    function: Callable[[Labels, Probabilities], float]
    direction: Direction
    low: float
    high: float
    source: str

    @property
    def perfect(self) -> float:
        """The score of probabilities that put everything on the true classes."""
        return self.high if self.direction == "higher" else self.low

    def __call__(self, y_true: Labels, y_prob: Probabilities) -> float:
        """Score predictions.

        Args:
            y_true: (N,) class ids, N at least 1.
            y_prob: (N, C) probabilities, C at least 2.

        Returns:
            The score, within the stated range.

        Raises:
            ValueError: No rows, fewer than two classes, or shapes and ids that do not fit.
        """
        if y_prob.ndim != 2 or y_true.shape != y_prob.shape[:1] or len(y_true) == 0 or y_prob.shape[1] < 2:
            raise ValueError(
                f"metric: shapes do not fit, got {y_true.shape} classes and {y_prob.shape} probabilities; expected (N,) and (N, C) with N at least 1 and C at least 2. "
                "Score at least one row."
            )
        if y_true.min() < 0 or y_true.max() >= y_prob.shape[1]:
            raise ValueError(
                f"metric: a class without a column, got {int(y_true.max() if y_true.min() >= 0 else y_true.min())}; expected 0 to {y_prob.shape[1] - 1}. "
                "Give one column of probabilities for each class."
            )
        return float(self.function(y_true, y_prob))


def metric(*, direction: Direction, low: float, high: float, source: str) -> Callable[[Callable[[Labels, Probabilities], float]], Metric]:
    """Make a metric of the decorated function; see `Metric` for the arguments."""

    def decorate(function: Callable[[Labels, Probabilities], float]) -> Metric:
        return Metric(function, direction, low, high, source)

    return decorate


def answers(y_prob: Probabilities) -> Labels:
    """The most probable class of each row, (N, C) -> (N,); the first of equals."""
    return np.asarray(y_prob.argmax(axis=1), dtype=np.int64)
