"""Signals become requests, of every block that they arrive in."""

import signal

import pytest

from lorabel.workflows.stopping import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_arrives_in_an_inner_block_is_asked_of_the_outer_one_too(number):
    with stop_on_signals() as outer:
        with stop_on_signals() as inner:
            signal.raise_signal(number)
            assert (inner.signal_number, outer.signal_number) == (number, None)
        assert outer.signal_number == number


def test_an_inner_block_without_a_signal_asks_nothing():
    with stop_on_signals() as outer:
        with stop_on_signals() as inner:
            pass
        assert not outer
        signal.raise_signal(signal.SIGTERM)
        assert outer.signal_number == signal.SIGTERM
        assert not inner


def test_afterwards_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
