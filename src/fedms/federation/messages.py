"""What travels: a Task from the server to a client, an Update or a Failure back.

Values only, as safetensors bytes. These are envelopes. What an exchange asks and answers is typed in
`exchanges/`, one file a question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from safetensors import SafetensorError
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.core.files import decode_arrays, encode_arrays, storable

Message = TypeVar("Message")
FailureKind = Literal["error", "died", "deadline", "refused", "lost"]
"""How an answer is lost: its client raised, its process ended, it came too late, it was not admitted, or the
client no longer holds what it was sent or kept."""
SUM = "sum"
"""The key of a task's settings that holds the plan of a secure sum; its answer is masked."""


@dataclass(frozen=True)
class Situation:
    """Where the federation stands, as every task says it."""

    active: tuple[int, ...]
    """The active blocks, ascending."""
    boundary: int
    """The lowest block that is not the frozen backbone's alone."""
    calibration: tuple[float, float] | None = None
    """Shrinkage and temperature of the discriminant, once there is one."""
    label_prior: float | None = None
    """How many samples everyone's label shares count in a client's; None leaves the label prior out."""
    averaged: Mapping[str, Any] | None = None
    """Stage and round of the present average, and its weights by block, for a client that takes itself out of
    it."""

    def to_settings(self) -> dict[str, Any]:
        """As plain values of a task."""
        settings: dict[str, Any] = {"active": list(self.active), "boundary": self.boundary}
        settings |= {} if self.calibration is None else {"calibration": list(self.calibration)}
        settings |= {} if self.label_prior is None else {"label_prior": self.label_prior}
        return settings | ({} if self.averaged is None else {"averaged": dict(self.averaged)})

    @classmethod
    def of(cls, task: Task) -> Situation:
        """What the task says."""
        settings = task.settings
        calibration = settings.get("calibration")
        return cls(
            tuple(settings["active"]),
            settings["boundary"],
            None if calibration is None else (calibration[0], calibration[1]),
            settings.get("label_prior"),
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
    """Replaces a lost answer: an entry of `failures` in metrics.jsonl."""

    client: str
    kind: FailureKind
    reason: str
    """One line."""


def encode(message: Task | Update | Failure) -> bytes:
    """As bytes: arrays in safetensors, the rest as JSON in its metadata."""
    if isinstance(message, Failure):
        lost = {"kind": message.kind, "reason": message.reason}
        return encode_arrays({}, {"client": message.client, "failure": lost})
    values = {key: value for key, value in vars(message).items() if key != "arrays"}
    if isinstance(message, Update):
        values["failure"] = None  # an answer of either kind travels in one form
    return encode_arrays(storable(message.arrays), values)


def decode_task(data: bytes) -> Task:
    """The task in these bytes.

    Raises:
        FedmsError: there is no task in them.
    """
    return _decode(data, Task)


def decode_answer(data: bytes) -> Update | Failure:
    """The update or the failure in these bytes.

    Raises:
        FedmsError: there is neither in them.
    """
    return _decode(data, _answer)


def decode_update(data: bytes) -> Update:
    """The update in these bytes.

    Raises:
        FedmsError: there is none in them, or a failure.
    """
    answer = decode_answer(data)
    if isinstance(answer, Failure):
        raise FedmsError(f"{answer.client} failed: {answer.reason}")
    return answer


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
