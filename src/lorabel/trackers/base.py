"""What a tracker provides.

A tracker is a second copy of what `metrics.jsonl` holds: where it fails, training goes on without it, and the user is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lorabel.artifacts.store import write_text


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


def kept_id(run: Path, tracker: str) -> str | None:
    """The id that a tracker knows a run by; None where it begins.

    Args:
        run: The run folder.
        tracker: The tracker's name.
    """
    file = _id_file(run, tracker)
    return (file.read_text("utf-8").strip() or None) if file.is_file() else None


def keep_id(run: Path, tracker: str, number: str) -> None:
    """Keep the id in the run folder: a run that is resumed goes on under it, one that is overwritten begins anew.

    Args:
        run: The run folder.
        tracker: The tracker's name.
        number: The id.
    """
    write_text(_id_file(run, tracker), f"{number}\n")


def _id_file(run: Path, tracker: str) -> Path:
    return run / "trackers" / f"{tracker}.id"
