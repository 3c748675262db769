"""What travels: a Task from the server to a client, an Update back. Values only, as safetensors bytes.

An `Update` of a client that failed carries no arrays and says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from safetensors import SafetensorError
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.core.files import decode_arrays, encode_arrays, storable

TaskKind = Literal["statistics", "calibrate", "train", "evaluate", "interpolate", "weigh", "test"]
FailureKind = Literal["error", "died", "deadline", "refused"]
"""How an answer is lost: its client raised, its process ended, it did not come in time, or it was not admitted."""


@dataclass(frozen=True)
class Task:
    """One thing the server asks of one client."""

    kind: TaskKind
    client: str
    stage: str
    round: int
    arrays: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Plain values: active blocks, temperature, ..."""


@dataclass(frozen=True)
class Update:
    """One client's answer."""

    client: str
    arrays: dict[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0
    """Number of samples it speaks for."""
    metrics: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None
    """Why there is no answer, in one line."""


@dataclass(frozen=True)
class Failure:
    """What stands in an answer's place where it is lost: an entry of `failures` in metrics.jsonl. It does not travel."""

    client: str
    kind: FailureKind
    reason: str
    """One line."""


Message = TypeVar("Message", Task, Update)


def encode(message: Task | Update) -> bytes:
    """As bytes: arrays in safetensors, the rest as JSON in its metadata."""
    return encode_arrays(
        storable(message.arrays), {key: value for key, value in vars(message).items() if key != "arrays"}
    )


def decode_task(data: bytes) -> Task:
    return _decode(data, Task)


def decode_update(data: bytes) -> Update:
    return _decode(data, Update)


def _decode(data: bytes, form: type[Message]) -> Message:
    try:
        arrays, values = decode_arrays(data)
        return form(arrays=arrays, **values)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FedmsError(f"a message cannot be read: {error}") from None
