"""Ctrl-C, an init system's SIGTERM, a closed terminal's SIGHUP.

The first signal ends the run after the present round, which is written whole. The second ends it at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from fedms.experiments.observers import Watcher

HANGUP = getattr(signal, "SIGHUP", None)
"""Windows has none."""
SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)
TRAINING = "train"
"""What is asked first in a round."""
OUTPUTS = (1, 2)
"""File numbers of standard output and standard error."""


class Interruptible:
    """A watcher that raises KeyboardInterrupt after a round in which a signal came.

    A round is on disk when it is reported, and when the next one begins, so a stop there loses nothing.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._at_work = self._asked = False
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        self._watcher.begin(config, facts)
        self._at_work = True
        self._stop_if_asked()

    def progress(self, what: str, done: int, total: int) -> None:
        self._watcher.progress(what, done, total)
        if what == TRAINING and not done:  # a round begins at a checkpoint, also where no line is due yet
            self._stop_if_asked()

    def round_done(self, record: dict[str, Any]) -> None:
        self._watcher.round_done(record)
        self._stop_if_asked()

    def end(self, result: dict[str, Any]) -> None:
        self._watcher.end(result)

    def note(self, text: str) -> None:
        self._watcher.note(text)

    def _stop_if_asked(self) -> None:
        if self._asked:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == HANGUP:
            self._leave_terminals()
        if self._asked or not self._at_work:  # before the first round there is nothing to lose
            raise KeyboardInterrupt
        self._asked = True
        with contextlib.suppress(OSError):  # `print` must not be called from a signal handler
            os.write(2, b"stopping after this round; once more to stop at once\n")

    def _leave_terminals(self) -> None:
        """Write nowhere from now on where the terminal is gone, since a failed write would end the round."""
        for output in self._terminals:
            if not os.isatty(output):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)

    def __enter__(self) -> Self:
        self._watcher.__enter__()
        if threading.current_thread() is threading.main_thread():
            self._terminals = [output for output in OUTPUTS if os.isatty(output)]
            # under `nohup` a run goes on when the terminal is closed
            nohup = HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_IGN
            heeded = [number for number in SIGNALS if not (nohup and number == HANGUP)]
            self._before = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._watcher.__exit__(kind, error, trace)
