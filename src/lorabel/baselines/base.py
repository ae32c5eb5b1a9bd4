"""What a baseline of a comparison provides.

A baseline sees the training and validation splits and returns a function from texts to probabilities. It gets embeddings as a function, so that it knows no encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabel.data.types import LabelArray


@dataclass(frozen=True)
class BaselineTask:
    """What a baseline may use.

    Attributes:
        train_texts: N texts.
        train_labels: Class ids (N,) or indicators (N, C).
        validation_texts: M texts, to choose settings by.
        validation_labels: Class ids (M,) or indicators (M, C).
        classes: C.
        descriptions: One text per class, in label order.
        embed: Texts -> mean of the frozen encoder's last states over each text's tokens, (B, D).
    """

    train_texts: Sequence[str]
    train_labels: LabelArray
    validation_texts: Sequence[str]
    validation_labels: LabelArray
    classes: int
    descriptions: tuple[str, ...]
    embed: Callable[[Sequence[str]], NDArray[np.float64]]


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline that is ready to answer.

    Attributes:
        predict_proba: N texts -> (N, C), rows adding up to 1 where a text has one label.
        trainable: Numbers that were fitted.
        bytes: What they and all they need to answer take, beside the frozen encoder, numbers in float32.
        settings: What was chosen, for the record.
    """

    predict_proba: Callable[[Sequence[str]], NDArray[np.float64]]
    trainable: int
    bytes: int
    settings: dict[str, Any] = field(default_factory=dict)


class Baseline(Protocol):
    """One baseline, for texts with one label and with several; registered in `BASELINES`, one file each.

    Class attributes:
        is_always_shown: It is a row of every comparison, named or not.
    """

    is_always_shown: ClassVar[bool]

    def fit(self, task: BaselineTask) -> FittedBaseline:
        """Fit whatever there is to fit.

        Args:
            task: Texts, labels, embeddings.

        Returns:
            The fitted baseline.
        """
