"""What an engine is: it carries tasks to clients and their answers back, as bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from fedms.core.errors import FedmsError
from fedms.core.formatting import clip
from fedms.federation.messages import Failure, Task, Update, decode_answer

LONGEST_REASON = 500
"""Characters of a client's reason for a failure that are kept."""

Answer = Update | Failure
Arrived = Callable[[Answer], None]
"""Called with each answer as it comes in."""


class Engine(Protocol):
    """All that an experiment knows of the way to its clients.

    An engine is a context manager: it closes at the end.
    """

    @property
    def workers(self) -> int:
        """How many processes or machines train at the same time."""

    @property
    def note(self) -> str:
        """One sentence on the way clients train, and why; empty where there was no choice."""

    @property
    def sent(self) -> int:
        """Bytes of all tasks so far."""

    @property
    def received(self) -> int:
        """Bytes of all answers so far."""

    def run(self, tasks: Sequence[Task], arrived: Arrived = ...) -> list[Update | Failure]:
        """Have every task done. The answers come in the order of the tasks; a failure replaces a lost one.

        Raises:
            FedmsError: the engine itself failed: a process cannot start, a disk of this machine is full.
        """

    def peak_memory(self) -> int:
        """Bytes of resident memory at most, over all processes on this machine."""

    def close(self) -> None:
        """End all processes, and remove temporary files."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ClosedAtEnd(ABC):
    """A context manager that closes at the end."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_answer(client: str, data: bytes) -> Answer:
    """The answer of the client that was asked.

    Bytes that are no answer are a failure of kind `refused`, so no client can end a run by what it sends.
    """
    try:
        answer = decode_answer(data)
    except FedmsError as error:
        return Failure(client, "refused", _one_line(str(error)))
    if isinstance(answer, Update):
        return answer
    return Failure(client, answer.kind, _one_line(answer.reason))


def _one_line(text: str) -> str:
    return clip(" ".join(text.split()), LONGEST_REASON)
