"""Stopping on request: the first SIGINT or SIGTERM lets the step in hand finish and the state be saved, a second one ends the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether, and by which signal, a stop was asked for."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


class _Handler:
    """What is called for a signal."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.request.signal_number is not None:
            os._exit(128 + number)
        self.request.signal_number = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request while the block runs.

    Outside the main thread signals cannot be caught; the request then never comes, and the caller's own handling stays in force. Blocks may lie within one another: what arrived
    within the inner one is a request of the outer one too, which may have more to do.

    Yields:
        The request, false until a signal arrives.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    before = {number: signal.signal(number, _Handler(request)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
            if request.signal_number == number and isinstance(handler, _Handler):
                handler.request.signal_number = number
