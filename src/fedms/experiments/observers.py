"""Who hears of an experiment's progress."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self


class Observer(Protocol):
    """Hears of a run's progress."""

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """Before the first round. `facts`: clients, classes, samples, blocks, model, workers, plan (a list of `stage` and `rounds`)."""

    def round_done(self, record: dict[str, Any]) -> None:
        """After each round, with its line of `metrics.jsonl`. All is written by then, so to raise here ends a run that can be resumed."""

    def note(self, text: str) -> None:
        """Anything else worth a line."""

    def end(self, result: dict[str, Any]) -> None:
        """After the test, with what result.json says."""


class Watcher(Observer, Protocol):
    """An observer that is also a context manager, so that what it shows always ends."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Several:
    """Tells each of several observers, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """To each."""
        for each in self._observers:
            each.begin(config, facts)

    def round_done(self, record: dict[str, Any]) -> None:
        """To each."""
        for each in self._observers:
            each.round_done(record)

    def note(self, text: str) -> None:
        """To each."""
        for each in self._observers:
            each.note(text)

    def end(self, result: dict[str, Any]) -> None:
        """To each."""
        for each in self._observers:
            each.end(result)


class Silent:
    """Says nothing."""

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        """Nothing."""

    def round_done(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def end(self, result: dict[str, Any]) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""
