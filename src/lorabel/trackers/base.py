"""What a tracker provides.

A tracker is a second copy of what `metrics.jsonl` holds: where it fails, training goes on without it, and the user is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol


class Tracker(Protocol):
    """One run in an experiment tracker.

    Class attributes:
        module: The library; it is imported when a run starts, not before.
        extra: The extra that brings it.
    """

    module: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        """Begin, or go on with, a run.

        Args:
            run: The run folder; its name names the run.
            config: Settings, flat: dotted name -> plain value.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values of one step.

        Args:
            step: Optimiser steps done.
            values: Name -> finite number.
        """

    def close(self, summary: Mapping[str, float]) -> None:
        """End the run.

        Args:
            summary: Final scores; empty where the run did not finish.
        """
