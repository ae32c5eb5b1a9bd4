"""What a training loss provides: a loss per row, and the normaliser that turns their sum into the step's mean. What a regulariser provides beside it.

The two are apart so that micro-batches add up to exactly the loss of the whole step, class weights included. In a multi-label task every label is a question of its own,
answered by a sigmoid; a row's loss is the mean over its labels, and a class's weight multiplies the terms of the rows that have it.

A regulariser stands between rows and loss. It may let each row go through several times, judge or change pooled states, and change what is made of the losses; it says which rows
must go through together, so that it never matters how a step is cut. It is on where its setting is, and several may be on: each takes the losses of the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabel.config import LossConfig
from lorabel.registry import REGULARISERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    # Logits (B, C) and labels -> the loss of each row (B,).
    RowLoss = Callable[[Tensor, Tensor], Tensor]


class Loss(Protocol):
    """A per-row loss."""

    @classmethod
    def from_settings(cls, settings: LossConfig, class_weights: Sequence[float] | None) -> Loss:
        """Make the loss; each reads the settings that concern it.

        Args:
            settings: The section `loss`.
            class_weights: One positive weight per class, settled, or None.
        """

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row.

        Args:
            logits: (B, C).
            labels: (B,) class ids; in a multi-label task (B, C) indicators.

        Returns:
            (B,), weighted where classes have weights.
        """

    def normaliser(self, labels: Tensor) -> float:
        """What the sum over all rows of a step is divided by.

        Args:
            labels: (N,) class ids or (N, C) indicators of every row of the step.
        """

    def row_weights(self, labels: Tensor, like: Tensor) -> Tensor | None:
        """What each row counts in the normaliser.

        Args:
            labels: (B,) class ids or (B, C) indicators.
            like: Gives format and device.

        Returns:
            (B,); None where each counts 1.
        """


@dataclass(frozen=True)
class StepRows:
    """The rows of one member that go through together, and where they belong in its optimiser step.

    Attributes:
        places: (B,) place of each row in the step.
        passes: (B,) which time it goes through, from 0.
        generator: The generator of one purpose in this step of this member: the same whichever rows of the step are here.
    """

    places: NDArray[np.int64]
    passes: NDArray[np.int64]
    generator: Callable[[str], np.random.Generator]

    def find(self, places: NDArray[np.int64], passes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which row here has a place and a pass.

        Args:
            places: (B,) the place looked for by each row.
            passes: (B,) the pass looked for by each row.

        Returns:
            (B,), each row's own number where there is no such row.
        """
        # Keys of (pass, place) pairs; one more place than there can be, so that a place that is not here meets no other pass.
        size = max(self.places.max(initial=0), places.max(initial=0)) + 1
        keys, wanted = self.passes * size + self.places, passes * size + places
        order = np.argsort(keys)
        found = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)] if len(keys) else order
        return np.asarray(np.where(keys[found] == wanted, found, np.arange(len(keys))))


class Regulariser(Protocol):
    """What is done to rows and losses in training beside the loss.

    Attributes:
        setting: The dotted setting that turns it on.
        passes: How often each row goes through, each time with dropout masks of its own; those of the first pass are the ones without the regulariser.
        neighbours: Places 0 to n - 1 of a step, n to 2n - 1, and so on, go through together.
    """

    setting: str
    passes: int
    neighbours: int

    @classmethod
    def from_settings(cls, settings: LossConfig) -> Regulariser | None:
        """Make the regulariser; None where its setting turns it off.

        Args:
            settings: The section `loss`.
        """

    def mix(self, pooled: Tensor, rows: StepRows) -> Tensor:
        """What the head sees in place of the pooled states.

        Args:
            pooled: (B, D) one member's.
            rows: Which ones they are.

        Returns:
            (B, D).
        """

    def states(self, pooled: Tensor, labels: Tensor, rows: StepRows) -> Tensor | None:
        """What pooled states cost by themselves, before any is changed.

        Args:
            pooled: (B, D) one member's.
            labels: (B,) class ids or (B, C) indicators.
            rows: Which ones they are.

        Returns:
            (B,), added to the losses of the rows, each with the weight that its row has in the normaliser; None for nothing.
        """

    def rows(self, loss: RowLoss, logits: Tensor, labels: Tensor, rows: StepRows) -> Tensor:
        """Loss of each row in each pass; a row's passes add up to the loss of the row.

        Args:
            loss: The loss without this regulariser.
            logits: (B, C).
            labels: (B,) class ids or (B, C) indicators.
            rows: Which ones they are.

        Returns:
            (B,).
        """


def make_regularisers(settings: LossConfig) -> tuple[Regulariser, ...]:
    """The regularisers that the settings turn on.

    Args:
        settings: The section `loss`.
    """
    return tuple(made for _, kind in REGULARISERS.items() if (made := kind.from_settings(settings)) is not None)


def weight_sum(labels: Tensor, class_weights: Sequence[float] | None) -> float:
    """Rows, or the sum of their true classes' weights; rows too where they have several labels, whose weights do not make a row count more.

    Args:
        labels: (N,) class ids or (N, C) indicators.
        class_weights: One weight per class, or None.
    """
    if class_weights is None or labels.dim() == 2:
        return float(len(labels))
    return float(sum(class_weights[label] for label in labels.tolist()))


def row_weights(labels: Tensor, class_weights: tuple[float, ...] | None, like: Tensor) -> Tensor | None:
    """The parts of `weight_sum`; see `Loss.row_weights`."""
    if class_weights is None or labels.dim() == 2:
        return None
    return weights_like(class_weights, like).index_select(0, labels)


def weights_like(class_weights: tuple[float, ...], logits: Tensor) -> Tensor:
    """Class weights (C,) in the format and on the device of the logits; kept, because making them there waits for the device."""
    return _weights(class_weights, logits.dtype, logits.device)


@lru_cache(maxsize=256)
def _weights(class_weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    import torch

    return torch.tensor(class_weights, dtype=dtype, device=device)
