"""What travels: a Task from the server to a client, an Update or a Failure back. Values only, as safetensors bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from safetensors import SafetensorError
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.core.files import decode_arrays, encode_arrays, plain

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


@dataclass(frozen=True)
class Failure:
    """Replaces a lost answer: an entry of `failures` in metrics.jsonl. A client that fails answers with kind `error`."""

    client: str
    kind: FailureKind
    reason: str
    """One line."""


Message = TypeVar("Message")


def encode(message: Task | Update | Failure) -> bytes:
    """As bytes: arrays in safetensors, the rest as JSON in its metadata."""
    if isinstance(message, Failure):
        lost = {"kind": message.kind, "reason": message.reason}
        return encode_arrays({}, {"client": message.client, "failure": lost})
    values = {key: value for key, value in vars(message).items() if key != "arrays"}
    if isinstance(message, Update):
        values["failure"] = None  # the key stays, since the number of bytes is a result
    return encode_arrays(plain(message.arrays), values)


def decode_task(data: bytes) -> Task:
    return _decode(data, Task)


def decode_update(data: bytes) -> Update:
    """As `decode_answer`; FedmsError also where the client failed."""
    answer = decode_answer(data)
    if isinstance(answer, Failure):
        raise FedmsError(f"{answer.client} failed: {answer.reason}")
    return answer


def decode_answer(data: bytes) -> Update | Failure:
    """One client's answer; FedmsError where the bytes are none."""
    return _decode(data, _answer)


def _answer(arrays: dict[str, Tensor], failure: Any = None, **values: Any) -> Update | Failure:
    if failure is None:
        update = Update(arrays=arrays, **values)
        if not isinstance(update.metrics, dict):
            raise TypeError("metrics are not a table")
        return update
    lost = Failure(**values, **failure)
    if lost.kind not in get_args(FailureKind) or not isinstance(lost.reason, str):
        raise ValueError("a failure of an unknown kind")
    return lost


def _decode(data: bytes, form: Callable[..., Message]) -> Message:
    try:
        arrays, values = decode_arrays(data)
        return form(arrays=arrays, **values)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FedmsError(f"a message cannot be read: {error}") from None
