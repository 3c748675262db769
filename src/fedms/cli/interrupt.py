"""Ctrl-C, and what an init system sends: the first ends the round, when all of it is written; the second ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from fedms.experiments.observers import Watcher

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruptible:
    """A watcher that raises KeyboardInterrupt after a round, when it was asked to in that round.

    An experiment tells of a round when it has been written, so this is where it can be stopped with nothing lost.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._at_work = self._asked = False
        self._before: dict[int, Any] = {}

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        self._watcher.begin(config, facts)
        self._at_work = True
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
        if self._asked or not self._at_work:  # before the first round there is nothing to lose
            raise KeyboardInterrupt
        self._asked = True
        with contextlib.suppress(OSError):
            os.write(
                2, b"stopping after this round; once more to stop at once\n"
            )  # print must not be called from here

    def __enter__(self) -> Self:
        self._watcher.__enter__()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._watcher.__exit__(kind, error, trace)
