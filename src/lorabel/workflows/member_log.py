"""Who hears what of a bank: its members' histories and trackers, and the caller, who knows members by their number in the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorabel.artifacts.history import History
from lorabel.events import Evaluated, Event, EventSink, Note, Progress, StepDone
from lorabel.workflows.tracking import Tracking


class MemberLog:
    """Sends each member's steps and evaluations to its own history, and to the caller under its number in the sweep.

    Args:
        on_event: The caller's.
        numbers: Number in the sweep of each member of the bank.

    Attributes:
        histories: One per member; the bank's owner opens them once it knows where each member goes on.
        trackings: One per member.
    """

    def __init__(self, on_event: EventSink, numbers: Sequence[int]) -> None:
        self._on_event = on_event
        self._numbers = numbers
        self.histories: list[History] = []
        self.trackings: list[Tracking] = []

    def __call__(self, event: Event) -> None:
        """Pass an event on; its member is the place in the bank."""
        if isinstance(event, StepDone | Evaluated):
            self.histories[event.member].append(replace(event, member=0))
            self.trackings[event.member](event)
        if not isinstance(event, Progress) and event.member is not None:
            event = replace(event, member=self._numbers[event.member])
        self._on_event(event)


def warning_of(number: int, on_event: EventSink) -> EventSink:
    """A sink for what one member does alone: its warnings say whose they are."""
    return lambda event: on_event(replace(event, member=number) if isinstance(event, Note) and event.is_warning else event)


def notes_of(number: int, on_event: EventSink) -> EventSink:
    """A sink for what a member's trackers tell, as that member's: the rest reaches the caller anyway."""
    return lambda event: on_event(replace(event, member=number)) if isinstance(event, Note) else None
