"""Work in a process of its own, so that the memory it peaks at is its own.

A process never gives back all that it once took: the allocator keeps what was freed, and the processor's library keeps the product kernels that it compiled. What comes later
in the same process would seem to need that, too.
"""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from lorabel.errors import KilledError, LorabelError, StoppedError
from lorabel.events import EventSink
from lorabel.workflows.stopping import StopRequest

T = TypeVar("T")
_SIGNALS = {signal.SIGINT, signal.SIGTERM}
# How long a signal may wait before it is passed on.
_SECONDS_BETWEEN_LOOKS = 0.2


def in_own_process(work: Callable[[EventSink], T], stop: StopRequest, on_event: EventSink) -> T:
    """Do work in a new process, and give back what it gives back.

    Args:
        work: A function at the top of a module, or a `partial` of one; it is called with a sink for events. Arguments, events and result have to be such that they can be sent.
        stop: Whether a stop was asked for; the signal is passed on, once.
        on_event: Receives the events, in this process.

    Returns:
        What `work` returned.

    Raises:
        LorabelError: What `work` raised, of whichever kind.
        KilledError: The process was killed, as where memory ran out.
        RuntimeError: It failed otherwise, and the message holds its traceback.
    """
    # Not a fork: threads of the libraries would be missing in it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work_there, args=(theirs, work), daemon=True)
    with _without_signals():
        process.start()
    theirs.close()  # Or the end of the process would not be the end of the pipe.
    try:
        kind, content = _listen(ours, process, stop, on_event)
    except BaseException:
        process.kill()  # Nobody would hear what it goes on to find; what it saved is there.
        raise
    finally:
        process.join()
        ours.close()
    if kind == "stopped":
        raise StoppedError(*content)
    if kind == "refused":
        raise content
    if kind == "failed":
        raise RuntimeError(f"In the process of its own:\n{content}")
    result: T = content
    return result


def _listen(ours: Connection, process: BaseProcess, stop: StopRequest, on_event: EventSink) -> tuple[str, Any]:
    """Pass events up and a signal down until the work has ended."""
    is_told = False
    while True:
        if stop.signal_number is not None and not is_told and process.pid is not None:
            os.kill(process.pid, stop.signal_number)
            is_told = True
        if not ours.poll(_SECONDS_BETWEEN_LOOKS):
            continue
        try:
            kind, content = ours.recv()
        except EOFError:
            process.join()
            if stop.signal_number is not None:
                return "stopped", ("Stopped before the training had begun; go on with the same command and --resume.", stop.signal_number)
            if process.exitcode is not None and process.exitcode < 0:
                killer = signal.Signals(-process.exitcode).name
                return "refused", KilledError(
                    f"training: its process was killed, got {killer}; expected it to end by itself. Where memory ran out, train fewer seeds or smaller batches; "
                    "what is done is saved, so go on with the same command and --resume."
                )
            return "failed", 'It did not begin. A script that asks for it has to begin under `if __name__ == "__main__":`, as it is imported there.'
        if kind != "event":
            return kind, content
        on_event(content)


@contextmanager
def _without_signals() -> Iterator[None]:
    """Hold signals back while a process is started: it inherits that, and lets them through once it can answer them."""
    # Its own first start would let them through.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work_there(theirs: Connection, work: Callable[[EventSink], Any]) -> None:
    # Ctrl-C goes to all processes of a terminal's group; here it comes from the first process, once, for a second one means to leave at once.
    os.setpgrp()

    def tell(kind: str, content: Any) -> None:
        try:
            theirs.send((kind, content))
        except BrokenPipeError:
            os._exit(1)  # The first process is gone: nobody would hear of what is found, and what was saved can be gone on with.

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        tell("done", work(partial(tell, "event")))
    except StoppedError as error:
        tell("stopped", (str(error), error.exit_code - 128))
    except LorabelError as error:
        tell("refused", error)
    except KeyboardInterrupt:
        return  # Before the work listens to signals: the first process, which hears the end of the pipe, says what there is to say.
    except Exception:
        tell("failed", traceback.format_exc())
