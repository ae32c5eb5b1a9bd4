"""Effective: the more rows a class has, the less each further one says. A class without rows is taken as one with one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabel.registry import WEIGHTINGS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lorabel.config import LossConfig
    from lorabel.losses.weightings.base import ClassRows


@WEIGHTINGS.register("effective")
def effective(rows: ClassRows, settings: LossConfig) -> NDArray[np.float64]:
    """Inverse effective number of rows, with `loss.effective_beta`; see `weightings.base`."""
    return effective_weights(rows.counts, settings.effective_beta)


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
    raw = (1 - beta) / (1 - beta ** counts.clip(1).astype("float64"))
    weights: NDArray[np.float64] = raw / raw[counts > 0].mean()
    return weights
