"""Steps that were handed to the device, and what came of them.

A GPU works through a step long after the host has handed it over. The host begins the next one meanwhile, and reads losses and gradient norms of a step when they are there.
On a CPU a step is done when it returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabel.data.types import TokenTable
from lorabel.training.state import Position
from lorabel.training.updates import MemberUpdate


@dataclass(frozen=True)
class MemberStep:
    """The rows of one member in one step.

    Attributes:
        rows: (B,) of the training split.
        table: The epoch's token table.
    """

    rows: NDArray[np.int64]
    table: TokenTable


@dataclass(frozen=True)
class BegunStep:
    """A step that was handed to the device.

    Attributes:
        steps: The rows of each member that takes part.
        updates: How each of them moves.
        tokens: Tokens of each.
        results: (2, K) losses and gradient norms; on the host once `event` is reached.
        event: Reached when they are; None where they are at hand.
        after: Where each member is after the step; filled in as soon as its time is known.
    """

    steps: Mapping[int, MemberStep]
    updates: Mapping[int, MemberUpdate]
    tokens: Mapping[int, int]
    results: Tensor
    event: torch.cuda.Event | None
    after: dict[int, Position] = field(default_factory=dict)

    @staticmethod
    def of(steps: Mapping[int, MemberStep], updates: Mapping[int, MemberUpdate], tokens: Mapping[int, int], results: Tensor) -> BegunStep:
        """A step whose results lie on the device, or will; see the attributes."""
        if results.device.type != "cuda":
            return BegunStep(steps, updates, tokens, results, None)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        on_host = results.to("cpu", non_blocking=True)
        event.record()
        return BegunStep(steps, updates, tokens, on_host, event)


class StepsUnderWay:
    """The steps whose results were not read yet, oldest first.

    Args:
        device: Where they are computed; on a GPU one stays under way while the next is begun.
    """

    def __init__(self, device: torch.device) -> None:
        self._ahead = 1 if device.type == "cuda" else 0
        self._begun: deque[BegunStep] = deque()

    def add(self, begun: BegunStep) -> list[tuple[BegunStep, list[list[float]]]]:
        """Add a step; returns earlier ones, or this one, with their losses and gradient norms (K each)."""
        self._begun.append(begun)
        return self._read(self._ahead)

    def finish(self) -> list[tuple[BegunStep, list[list[float]]]]:
        """Wait for all of them; returns them with their losses and gradient norms."""
        return self._read(0)

    def _read(self, left: int) -> list[tuple[BegunStep, list[list[float]]]]:
        known = []
        while len(self._begun) > left:
            begun = self._begun.popleft()
            if begun.event is not None:
                begun.event.synchronize()
            known.append((begun, begun.results.tolist()))
        return known


class Meter:
    """Samples per second since the last reading."""

    def __init__(self) -> None:
        self._samples, self._seconds = 0, 0.0

    def add(self, samples: int, seconds: float) -> None:
        """Count samples, and the time that went by."""
        self._samples += samples
        self._seconds += seconds

    def read(self) -> float:
        """The rate; counting starts again."""
        rate = self._samples / self._seconds if self._seconds else 0.0
        self._samples, self._seconds = 0, 0.0
        return rate
