"""What travels: a Task from the server to a client, an Update or a Failure back. Values only, as safetensors bytes.

These are envelopes. What an exchange asks and answers is typed in `exchanges/`, one file a question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.core.files import decode_arrays, encode_arrays, plain

FailureKind = Literal["error", "died", "deadline", "refused"]
"""How an answer is lost: its client raised, its process ended, it came too late, or it was not admitted."""


@dataclass(frozen=True)
class Situation:
    """Where the federation stands, as every task says it."""

    active: tuple[int, ...]
    """The active blocks, ascending."""
    boundary: int
    """The lowest block that is not the frozen backbone's alone."""
    temperature: float | None = None
    """Of the discriminant, once there is one."""
    averaged: Mapping[str, Any] | None = None
    """Stage and round of the present average, and its weights by block, for a client that takes itself out of it."""

    def to_settings(self) -> dict[str, Any]:
        """As plain values of a task."""
        settings: dict[str, Any] = {"active": list(self.active), "boundary": self.boundary}
        settings |= {} if self.temperature is None else {"temperature": self.temperature}
        return settings | ({} if self.averaged is None else {"averaged": dict(self.averaged)})

    @classmethod
    def of(cls, task: Task) -> Situation:
        """What the task says."""
        settings = task.settings
        return cls(
            tuple(settings["active"]),
            settings["boundary"],
            settings.get("temperature"),
            settings.get("averaged"),
        )


@dataclass(frozen=True)
class Task:
    """One thing the server asks of one client."""

    kind: str
    """The exchange's name, from `exchanges.EXCHANGES`."""
    client: str
    stage: str
    round: int
    arrays: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Plain values: the situation, and what the exchange asks."""


@dataclass(frozen=True)
class Update:
    """One client's answer."""

    client: str
    arrays: dict[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0
    """Number of samples it speaks for."""
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """What stands in an answer's place where it is lost: an entry of `failures` in metrics.jsonl."""

    client: str
    kind: FailureKind
    reason: str
    """One line."""


def encode(message: Task | Update | Failure) -> bytes:
    """As bytes: arrays in safetensors, the rest as JSON in its metadata.

    An answer of either kind travels in one form, in which `failure` is null or the reason. A client can only say that
    it raised an error: the server sees all other kinds for itself.
    """
    if isinstance(message, Failure):
        return encode_arrays(
            {}, {"client": message.client, "weight": 0.0, "metrics": {}, "failure": message.reason}
        )
    values = {key: value for key, value in vars(message).items() if key != "arrays"}
    if isinstance(message, Update):
        values["failure"] = None
    return encode_arrays(plain(message.arrays), values)


def decode_task(data: bytes) -> Task:
    """The task in these bytes.

    Raises:
        FedmsError: that is not what these bytes are.
    """
    arrays, values = _decoded(data)
    try:
        return Task(arrays=arrays, **values)
    except TypeError as error:
        raise FedmsError(f"a message cannot be read: {error}") from None


def decode_answer(data: bytes) -> Update | Failure:
    """The update or failure in these bytes.

    Raises:
        FedmsError: that is not what these bytes are.
    """
    arrays, values = _decoded(data)
    failure = values.pop("failure", None)
    try:
        update = Update(arrays=arrays, **values)
    except TypeError as error:
        raise FedmsError(f"a message cannot be read: {error}") from None
    return update if failure is None else Failure(str(update.client), "error", str(failure))


def decode_update(data: bytes) -> Update:
    """As `decode_answer`, for bytes that hold an update.

    Raises:
        FedmsError: they do not.
    """
    answer = decode_answer(data)
    if isinstance(answer, Failure):
        raise FedmsError(f"{answer.client} failed: {answer.reason}")
    return answer


def _decoded(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return decode_arrays(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FedmsError(f"a message cannot be read: {error}") from None
