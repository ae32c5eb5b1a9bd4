"""Balanced: rows of all classes count as much together; with several labels per text, rows with a label as much as those without. A class without rows is taken as one with one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabel.registry import WEIGHTINGS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lorabel.config import LossConfig
    from lorabel.losses.weightings.base import ClassRows


@WEIGHTINGS.register("balanced")
def balanced(rows: ClassRows, _settings: LossConfig) -> NDArray[np.float64]:
    """Inverse frequency; see `weightings.base`."""
    return positive_weights(rows.counts, rows.total) if rows.is_multi_label else balanced_weights(rows.counts)


def balanced_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inverse frequency: rows / (classes × rows of the class).

    Args:
        counts: Rows of each class (C,).

    Returns:
        (C,).

    Source:
        King and Zeng 2001, "Logistic Regression in Rare Events Data", equation 5.
    """
    weights: NDArray[np.float64] = counts.sum() / (len(counts) * counts.clip(1))
    return weights


def positive_weights(counts: NDArray[np.int64], rows: int) -> NDArray[np.float64]:
    """Weights of labels in a multi-label task that make the rows with a label count as much as those without: rows without / rows with.

    Args:
        counts: Rows of each label (C,).
        rows: N.

    Returns:
        (C,), above 0 for a label of every row too.

    Source:
        King and Zeng 2001, "Logistic Regression in Rare Events Data", equation 5, for one label against its absence, absence weighing 1.
    """
    weights: NDArray[np.float64] = (rows - counts).clip(1) / counts.clip(1)
    return weights
