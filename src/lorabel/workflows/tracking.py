"""Sending what happens to the trackers that the settings name."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from lorabel.artifacts.records import RunRecord
from lorabel.config import RunConfig, flatten
from lorabel.errors import MissingExtraError
from lorabel.events import Evaluated, Event, EventSink, Note, StepDone
from lorabel.registry import TRACKERS
from lorabel.trackers.base import Tracker


def check_trackers(config: RunConfig) -> None:
    """Make sure that every tracker named is there, before anything is trained.

    Raises:
        ConfigError: No tracker of that name.
        MissingExtraError: Its library is not installed.
    """
    for name in config.trackers:
        kind: Any = TRACKERS.get(name)
        if importlib.util.find_spec(kind.module) is None:
            raise MissingExtraError(
                f"trackers: {name} is not installed, got no module {kind.module!r}; expected the extra. pip install 'lorabel[{kind.extra}]', or leave it out."
            )


class Tracking:
    """The trackers of one run, as an event sink; use as a context manager.

    A tracker that fails is left out from then on, and it is said: what it would show is in `metrics.jsonl` as well.

    Args:
        config: The run's settings.
        run: The run folder.
        on_event: Receives every event, and a note where a tracker failed.
    """

    def __init__(self, config: RunConfig, run: Path, on_event: EventSink) -> None:
        self._config, self._run, self._on_event = config, run, on_event
        self._trackers: dict[str, Tracker] = {}
        self._summary: dict[str, float] = {}

    def __enter__(self) -> Tracking:
        settings = flatten(self._config.model_dump(mode="json"))
        for name in self._config.trackers:
            kind: Any = TRACKERS.get(name)
            self._guarded(name, lambda kind=kind, name=name: self._trackers.__setitem__(name, kind(self._run, settings)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: tracker.close(self._summary))

    def __call__(self, event: Event) -> None:
        """Pass an event on, and send the numbers of steps and evaluations to the trackers."""
        if isinstance(event, StepDone | Evaluated) and self._trackers:
            values = {name: value for name, value in _values(event).items() if math.isfinite(value)}
            for name, tracker in list(self._trackers.items()):
                self._guarded(name, lambda tracker=tracker: tracker.log(event.step, values))
        self._on_event(event)

    def finished(self, record: RunRecord) -> None:
        """Remember the final scores; without this call the run counts as not finished."""
        splits = {"validation": record.metrics.validation, "test": record.metrics.test}
        scores = {f"{split}_{name}": getattr(found, name) for split, found in splits.items() if found is not None for name in ("accuracy", "macro_f1", "loss")}
        self._summary = {**scores, "trainable_parameters": record.parameters.trainable}

    def _guarded(self, name: str, work: Any) -> None:
        try:
            work()
        except Exception as error:  # Each library has exceptions of its own; none of them may stop a run.
            self._trackers.pop(name, None)
            self._on_event(Note(f"The tracker {name} failed and is left out: {type(error).__name__}: {error}", is_warning=True))


def _values(event: StepDone | Evaluated) -> dict[str, float]:
    if isinstance(event, StepDone):
        names = ("loss", "learning_rate", "grad_norm", "samples_per_second")
        return {f"train/{name}": getattr(event, name) for name in names}
    return {f"validation/{name}": getattr(event, name) for name in ("accuracy", "macro_f1", "loss")}
