"""What a rule for class weights provides: a function from the training rows' classes and the settings to one weight per class.

Whichever loss is set takes the weights. Nothing here loads numpy, because the command line reads the names of all rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lorabel.config import LossConfig

    # The classes of the training rows, and the section `loss` -> (C,) a weight per class, above 0.
    Weighting = Callable[["ClassRows", LossConfig], NDArray[np.float64]]


@dataclass(frozen=True)
class ClassRows:
    """How many training rows each class has.

    A class without rows never occurs in a step: its weight may be anything above 0, and is never used.

    Attributes:
        counts: Rows of each class (C,).
        total: Rows in all; where a row may have several labels, not the sum of the counts.
        is_multi_label: Whether it may.
    """

    counts: NDArray[np.int64]
    total: int
    is_multi_label: bool
