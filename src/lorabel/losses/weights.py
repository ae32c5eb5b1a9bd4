"""Class weights from the rows of each class. A class without rows never occurs in a step: its weight is that of a class with one, and never used."""

import numpy as np
from numpy.typing import NDArray


def balanced_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inverse frequency: rows / (classes × rows of the class).

    Args:
        counts: Rows of each class (C,).

    Returns:
        (C,).

    Source:
        King and Zeng 2001, "Logistic Regression in Rare Events Data", equation 5.
    """
    return np.asarray(counts.sum() / (len(counts) * np.maximum(counts, 1)))


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
    return np.asarray(np.maximum(rows - counts, 1) / np.maximum(counts, 1))


def effective_weights(counts: NDArray[np.int64], beta: float) -> NDArray[np.float64]:
    """Inverse effective number of rows, (1 - β) / (1 - β^n), scaled so that the weights of the classes that have rows are 1 in the mean.

    Args:
        counts: Rows of each class (C,).
        beta: In [0, 1): 0 weighs all classes alike, towards 1 it is the inverse frequency.

    Returns:
        (C,).

    Source:
        Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", equation 2 and section 4.
    """
    raw = (1 - beta) / (1 - beta ** np.maximum(counts, 1).astype(np.float64))
    return np.asarray(raw / raw[counts > 0].mean())
