"""Observers: the interface through which an experiment reports its progress."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self


class Observer(Protocol):
    """Receives the progress of a run."""

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """Called before the first round.

        Args:
            config: the run's `Config`.
            facts: `clients`, `classes`, `samples` (of the whole data set), `blocks`, `model`, `workers` and
                `plan`, a list of `stage` and `rounds`.
        """

    def progress(self, what: str, done: int, total: int) -> None:
        """Called inside a round, also from other threads, before the first answer and after each one.

        Args:
            what: the kind of question, as in `fedms.federation.exchanges`.
            done: clients that have answered so far.
            total: clients that were asked.
        """

    def round_done(self, record: dict[str, Any]) -> None:
        """Called after each round with its line of metrics.jsonl.

        The round is on disk by then, so an exception from here ends a run that can be resumed.
        """

    def note(self, text: str) -> None:
        """Called with any other message, one line."""

    def end(self, result: dict[str, Any]) -> None:
        """Called after the test, with the content of result.json."""


class Watcher(Observer, Protocol):
    """An observer that is also a context manager, so that its display always ends."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Several:
    """Passes every call to several observers, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """Pass the call to each observer."""
        for each in self._observers:
            each.begin(config, facts)

    def progress(self, what: str, done: int, total: int) -> None:
        """Pass the call to each observer."""
        for each in self._observers:
            each.progress(what, done, total)

    def round_done(self, record: dict[str, Any]) -> None:
        """Pass the call to each observer."""
        for each in self._observers:
            each.round_done(record)

    def note(self, text: str) -> None:
        """Pass the call to each observer."""
        for each in self._observers:
            each.note(text)

    def end(self, result: dict[str, Any]) -> None:
        """Pass the call to each observer."""
        for each in self._observers:
            each.end(result)


class Silent:
    """Shows nothing."""

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """Do nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Do nothing."""

    def round_done(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def end(self, result: dict[str, Any]) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""
