"""Signals end a run after its present round: SIGINT, SIGTERM, and SIGHUP, when the terminal is closed."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Iterator

import pytest

from fedms.cli import interrupt
from fedms.cli.interrupt import SIGNALS, Interruptible
from fedms.experiments.observers import Silent


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of these signals, put back at the end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_the_run_after_the_round_and_the_second_at_once(number, capfd):
    with Interruptible(Silent()) as watcher:
        watcher.begin(None, {})
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            watcher.round_done({})
        assert capfd.readouterr().err == "stopping after this round; once more to stop at once\n"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_before_the_first_round_a_closed_terminal_ends_the_run_at_once():
    with Interruptible(Silent()), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGHUP)


def test_the_callers_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with Interruptible(Silent()):
        assert all(signal.getsignal(number) != before[number] for number in SIGNALS)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_under_nohup_a_run_goes_on_when_the_terminal_is_closed():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interruptible(Silent()) as watcher:
        watcher.begin(None, {})
        os.kill(os.getpid(), signal.SIGHUP)
        watcher.round_done({})
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("closed", [True, False])
def test_the_round_is_ended_though_its_terminal_is_gone(monkeypatch, closed):
    """A write to it would fail, and so end the round before it is whole."""
    ours, theirs = pty.openpty()
    monkeypatch.setattr(interrupt, "OUTPUTS", (theirs,))
    try:
        with Interruptible(Silent()) as watcher:
            watcher.begin(None, {})
            if closed:
                os.close(ours)
                with pytest.raises(OSError):
                    os.write(theirs, b"lost")
            os.kill(os.getpid(), signal.SIGHUP)
            assert os.write(theirs, b"still") == 5
            with pytest.raises(KeyboardInterrupt):
                watcher.round_done({})
        assert closed or os.read(ours, 5) == b"still"
    finally:
        os.close(theirs)
        if not closed:
            os.close(ours)
