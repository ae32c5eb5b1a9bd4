"""Work in a process of its own: events and results come back, errors keep their kind, a stop goes down, and memory is the work's own."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch

from lorabel.errors import BudgetError, KilledError, StoppedError
from lorabel.events import Note
from lorabel.workflows.finishing import peak_memory_bytes
from lorabel.workflows.own_process import in_own_process
from lorabel.workflows.stopping import StopRequest, stop_on_signals


def counts(last, on_event):
    for number in range(last):
        on_event(Note(f"note {number}"))
    return os.getpid(), last


def raises(error, _on_event):
    raise error


def is_killed(_on_event):
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(_on_event):
    os._exit(1)


def peaks(_on_event):
    return peak_memory_bytes(torch.device("cpu"))


def waits_for_a_stop(on_event):
    with stop_on_signals() as stop:
        on_event(Note("waits"))
        deadline = time.monotonic() + 60
        while not stop and time.monotonic() < deadline:
            time.sleep(0.01)
        raise StoppedError("It is saved.", stop.signal_number or 0)


def test_events_and_the_result_come_back_in_order():
    heard = []
    process, last = in_own_process(partial(counts, 3), StopRequest(), heard.append)
    assert (process == os.getpid(), last) == (False, 3)
    assert [event.text for event in heard] == ["note 0", "note 1", "note 2"]


def test_memory_is_the_work_s_own():
    ballast = np.ones(100_000_000)  # 0.8 GB, every page of it written.
    own, here = in_own_process(peaks, StopRequest(), print), peak_memory_bytes(torch.device("cpu"))
    assert own + ballast.nbytes / 2 < here


@pytest.mark.parametrize(
    ("work", "kind", "message"),
    [
        (partial(raises, BudgetError("budget: too many")), BudgetError, "^budget: too many$"),
        (partial(raises, ZeroDivisionError("a bug")), RuntimeError, r"(?s)Traceback.*in raises.*ZeroDivisionError: a bug"),
        (is_killed, KilledError, "^training: its process was killed, got SIGKILL; .* Where memory ran out, train fewer seeds"),
        (leaves, RuntimeError, "It did not begin"),
    ],
)
def test_errors_keep_their_kind(work, kind, message):
    with pytest.raises(kind, match=message) as caught:
        in_own_process(work, StopRequest(), print)
    assert caught.type is kind


def test_a_stop_goes_down_once_and_comes_back_as_one():
    stop = StopRequest()

    def asks(_event):
        stop.signal_number = signal.SIGTERM

    with pytest.raises(StoppedError, match="It is saved") as caught:
        in_own_process(waits_for_a_stop, stop, asks)
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_an_interruption_here_leaves_nothing_there():
    started = []

    def interrupts(_event):
        started.append(time.monotonic())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_own_process(waits_for_a_stop, StopRequest(), interrupts)
    assert time.monotonic() - started[0] < 30


class SlowToArrive:
    """Work whose own import takes long, as that of the libraries does."""

    def __reduce__(self):
        return time.sleep, (2.0,)

    def __call__(self, _on_event):
        raise AssertionError("this is never called")


@pytest.mark.parametrize("delay", [0.05, 1.5])
def test_a_stop_before_the_work_listens_is_one_and_prints_nothing(delay, capfd):
    with stop_on_signals() as stop:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(StoppedError, match="Stopped before the training had begun") as caught:
            in_own_process(SlowToArrive(), stop, print)
    assert caught.value.exit_code == 128 + signal.SIGINT
    assert capfd.readouterr().err == ""


def goes_on(on_event):
    on_event(Note(str(os.getpid())))
    while True:
        time.sleep(0.02)
        on_event(Note("still here"))


def test_where_the_first_process_is_killed_the_other_ends_and_says_nothing():
    script = (
        "from tests.unit.workflows.test_own_process import goes_on\n"
        "from lorabel.workflows.own_process import in_own_process\n"
        "from lorabel.workflows.stopping import StopRequest\n"
        "if __name__ == '__main__':\n"
        "    in_own_process(goes_on, StopRequest(), lambda event: print(event.text, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert int(first.stdout.readline()) != first.pid
        first.kill()
        # Both outputs have an end: no process that had them is left.
        assert first.communicate(timeout=60)[1] == ""
