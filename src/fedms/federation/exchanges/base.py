"""An exchange is one question to clients: what is asked, what a client answers, how that is checked, what
comes of it.

One file a question. Exchanges know neither server nor host: a client's side is a `ClientView`, what the
server knows of a client is an `Expected`. `Exchange.answer` is the one place where something of a client's
data becomes an answer, and `Exchange.combine` the one place where answers become something shared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.federation.client_view import ClientView
from fedms.federation.exchanges.checks import ROUNDING, RefusalError, check_shapes, check_whole
from fedms.federation.messages import Situation, Task, Update
from fedms.federation.recipe import Recipe
from fedms.federation.secure.encoding import Range, between
from fedms.model.backbone import Backbone

Split = Literal["train", "validation"]

LEAST_LIKELIHOOD = -100.0
"""Mean log-likelihood of a sample, in nats, below which a secure sum does not tell candidates apart."""


@dataclass(frozen=True)
class Cost:
    """What an answer took."""

    flops: int = 0
    """Operations of this task alone."""
    once: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """What is computed once and kept: by name, which one it was, and the operations it took."""

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Cost:
        """As an answer says it."""
        return cls(int(metrics.get("flops", 0)), metrics.get("once", {}))


@dataclass(frozen=True)
class Asked:
    """What an exchange asks beside the situation, as plain values. Most ask nothing more."""

    def to_settings(self) -> dict[str, Any]:
        """As plain values of a task."""
        return asdict(self)

    @classmethod
    def of(cls, task: Task) -> Self:
        """What the task asks."""
        return cls(**{each.name: task.settings[each.name] for each in fields(cls)})


@dataclass(frozen=True)
class Answer(ABC):
    """What a client answers."""

    samples: int
    """How many samples it speaks for."""

    def arrays(self) -> dict[str, Tensor]:
        """The tensors that travel."""
        return {}

    def metrics(self) -> dict[str, Any]:
        """The plain values that travel."""
        return {}

    def to_update(self, client: str, cost: Cost) -> Update:
        """As it travels. An answer that states its own cost keeps it."""
        costs = {"flops": cost.flops, "once": cost.once}
        return Update(client, self.arrays(), self.samples, costs | self.metrics())

    @classmethod
    @abstractmethod
    def of(cls, update: Update) -> Self:
        """What an update says. Values are checked later: nothing is trusted here."""


@dataclass(frozen=True)
class Likelihood(Answer):
    """Log-likelihood of a client's validation labels under each of some candidates."""

    name: ClassVar[str]
    """Of the array that travels."""
    log_likelihood: Tensor
    """[candidates], a sum over samples"""

    def arrays(self) -> dict[str, Tensor]:
        """The one array."""
        return {self.name: self.log_likelihood}

    @classmethod
    def of(cls, update: Update) -> Self:
        """What an update says."""
        return cls(int(update.weight), update.arrays[cls.name])

    @classmethod
    def total(cls, answers: Sequence[Self]) -> Tensor:
        """The sum over clients, float64 [candidates]."""
        return torch.stack([answer.log_likelihood.double() for answer in answers]).sum(0)

    @classmethod
    def cut(cls, update: Update, samples: int) -> dict[str, Tensor]:
        """The log-likelihoods within their range: one that is below it is never the best."""
        return {cls.name: update.arrays[cls.name].double().clamp(LEAST_LIKELIHOOD * samples, 0.0)}

    @classmethod
    def ranges(cls, candidates: int, samples: int) -> dict[str, Range]:
        """What a client with that many samples can add to a sum."""
        return {cls.name: between((candidates,), LEAST_LIKELIHOOD * samples, 0.0)}

    @classmethod
    def check(cls, update: Update, candidates: int, samples: int) -> None:
        """Raise RefusalError unless this is a log-likelihood of that number of candidates."""
        check_shapes(update.arrays, {cls.name: torch.empty(candidates, device="meta")})
        if float(update.arrays[cls.name].max()) > ROUNDING * samples:
            raise RefusalError(f"{cls.name} is above zero")


def log_likelihood(candidates: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Log-likelihood of labels [n] under each candidate's logits [n, C], [candidates]."""
    return torch.tensor([-float(F.cross_entropy(each, labels, reduction="sum")) for each in candidates])


@dataclass(frozen=True)
class Expected:
    """What the server knows of a client whose answer it checks."""

    recipe: Recipe
    backbone: Backbone
    classes: int
    capacity: int
    """How many blocks the client can train."""
    rank: int
    """Of its pairs."""
    declared: Mapping[str, int]
    """How many samples of each split it says that it holds; of this answer, and of those before."""

    def samples(self, split: Split, value: Any) -> int:
        """A number of samples.

        Raises:
            RefusalError: it is no such number, or another one than the client has declared.
        """
        count = check_whole(value, f"its number of {split} samples", least=1)
        known = self.declared.get(split, count)
        if count != known:
            raise RefusalError(f"it speaks for {count} {split} samples, and declared {known}")
        return count


AskedT = TypeVar("AskedT", bound=Asked)
AnswerT = TypeVar("AnswerT", bound=Answer)
ResultT = TypeVar("ResultT")


class Exchange(ABC, Generic[AskedT, AnswerT, ResultT]):
    """One question to clients.

    Attributes:
        kind: its name, in tasks and messages.
        split: which samples an answer's weight counts.
        asked, answered: the types of what is asked and answered.
    """

    kind: ClassVar[str]
    split: ClassVar[Split]
    asked: type[AskedT]
    answered: type[AnswerT]

    @abstractmethod
    def answer(self, view: ClientView, asked: AskedT) -> AnswerT:
        """What this client answers."""

    @abstractmethod
    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """Refuse what no honest client can have answered to this task.

        Raises:
            RefusalError: why, in one line.
        """

    @abstractmethod
    def combine(self, answers: Sequence[AnswerT], recipe: Recipe) -> ResultT:
        """What the server makes of all answers, in the order of client names."""

    def result(self, updates: Sequence[Update], recipe: Recipe) -> ResultT:
        """The result of admitted updates, in whatever order they arrived."""
        ordered = sorted(updates, key=lambda update: update.client)
        return self.combine([self.answered.of(update) for update in ordered], recipe)

    def settings(self, situation: Situation, asked: AskedT) -> dict[str, Any]:
        """The plain values of a task."""
        return situation.to_settings() | asked.to_settings()

    def unpacked(self, task: Task, update: Update, expected: Expected) -> Update:
        """The update with its arrays as they are checked and combined. Most travel as they are.

        Raises:
            RefusalError: the arrays cannot be unpacked.
        """
        return update

    def declares(self, task: Task, update: Update, expected: Expected) -> dict[str, int]:
        """How many samples of which split the client says with this answer that it holds.

        Raises:
            RefusalError: these are no such numbers, or other ones than before.
        """
        return {self.split: expected.samples(self.split, update.weight)}

    # in a secure sum

    def ranges(self, task: Task, expected: Expected) -> dict[str, Range] | None:
        """What this client can add to a secure sum, by array; None where each single answer is needed."""
        return None

    def addends(self, update: Update, expected: Expected) -> dict[str, Tensor]:
        """What the client adds, in these ranges."""
        return dict(update.arrays)

    def summed(self, totals: Mapping[str, Tensor], parts: Mapping[str, Sequence[Expected]]) -> Update:
        """One answer in all clients' name. `parts` are the clients that are in each array's sum."""
        [*_, everybody] = sorted(parts.values(), key=len)
        samples = sum(each.declared[self.split] for each in everybody)
        return Update("", dict(totals), float(samples))


LikelihoodT = TypeVar("LikelihoodT", bound=Likelihood)


class ChoiceExchange(Exchange[Asked, LikelihoodT, float]):
    """One number for all clients: the candidate of the best likelihood on all clients' validation data.

    Attributes:
        candidates: the grid; a client answers a log-likelihood for each.
    """

    split = "validation"
    asked = Asked
    candidates: ClassVar[tuple[float, ...]]

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """A log-likelihood a candidate."""
        self.answered.check(update, len(self.candidates), expected.declared["validation"])

    def ranges(self, task: Task, expected: Expected) -> dict[str, Range]:
        """A log-likelihood a candidate."""
        return self.answered.ranges(len(self.candidates), expected.declared["validation"])

    def addends(self, update: Update, expected: Expected) -> dict[str, Tensor]:
        """The log-likelihoods, cut to their range."""
        return self.answered.cut(update, expected.declared["validation"])

    def combine(self, answers: Sequence[LikelihoodT], recipe: Recipe) -> float:
        """The candidate of the best likelihood."""
        return self.candidates[int(self.answered.total(answers).argmax())]
