"""An exchange is one question to clients: what is asked, what a client answers, how that is checked, what
comes of it.

One file a question. Exchanges know neither server nor host: a client's side is a `ClientView`, what the
server knows of a client is an `Expected`. `Exchange.answer` is the one place where something of a client's
data becomes an answer, and `Exchange.combine` the one place where answers become something shared.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.errors import FedmsError
from fedms.data.federated import Samples
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges.checks import RefusalError, check_shapes, check_whole
from fedms.federation.messages import Situation, Task, Update
from fedms.federation.recipe import Recipe
from fedms.federation.secure.encoding import Range, between
from fedms.model.backbone import Backbone

Split = Literal["train", "validation"]

FURTHEST = 4.0
"""Nats by which a candidate is behind a client's best one, at most, as it is sent."""
STEP = 0.1
"""Nats in whose multiples that is sent."""


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
    """Log-likelihood of a client's validation labels under each of some candidates.

    What travels is how far each candidate is behind the best one (`behind`).
    """

    name: ClassVar[str]
    """Of the array that travels."""
    log_likelihood: Tensor
    """[candidates], a sum over samples"""

    @classmethod
    def told(cls, view: ClientView, samples: Samples, log_likelihood: Tensor) -> Self:
        """What a client says: to one with fewer than `statistics.least` samples all candidates are level."""
        few = len(samples) < view.config.statistics.least
        return cls(len(samples), torch.zeros_like(log_likelihood) if few else log_likelihood)

    @classmethod
    def choices(cls, candidates: Tensor) -> Tensor:
        """The candidates as [choices, candidates]: of each row one is chosen."""
        return candidates[None]

    def arrays(self) -> dict[str, Tensor]:
        """The one array."""
        return {self.name: behind(self.choices(self.log_likelihood)).flatten()}

    @classmethod
    def of(cls, update: Update) -> Self:
        """What an update says."""
        return cls(int(update.weight), update.arrays[cls.name])

    @classmethod
    def total(cls, answers: Sequence[Self], recipe: Recipe) -> Tensor:
        """The sum over clients, float64 [candidates].

        Raises:
            FedmsError: all clients have fewer than `statistics.least` samples.
        """
        least = recipe.config.statistics.least
        if all(answer.samples < least for answer in answers):
            raise FedmsError(f"statistics.least: no client has {least} validation samples; lower it")
        return torch.stack([answer.log_likelihood.double() for answer in answers]).sum(0)

    @classmethod
    def ranges(cls, candidates: int) -> dict[str, Range]:
        """What a client can add to a sum."""
        return {cls.name: between((candidates,), -FURTHEST, 0.0)}

    @classmethod
    def check(cls, update: Update, candidates: int, expected: Expected) -> None:
        """Raise RefusalError unless this says of that number of candidates how far they are behind."""
        check_shapes(update.arrays, {cls.name: torch.empty(candidates, device="meta")})
        said = cls.choices(update.arrays[cls.name])
        if float(said.max()) > 0:
            raise RefusalError(f"{cls.name} is above zero")
        if not torch.equal(said, behind(said)):
            raise RefusalError(f"{cls.name} is not in steps of {STEP:g} from 0 down to {-FURTHEST:g}")
        least = expected.recipe.config.statistics.least
        if expected.declared["validation"] < least and said.any():
            raise RefusalError(f"{cls.name} is of fewer than {least} validation samples")


def behind(log_likelihood: Tensor) -> Tensor:
    """How far candidates [..., candidates] are behind the best one, as it is sent.

    It is 0 for the best, and goes in steps of `STEP` nats down to -`FURTHEST`.

    So no sample changes a number by more than `FURTHEST`, and the likelihood itself stays at the client.
    """
    sums = log_likelihood.double()
    away = (sums - sums.amax(-1, keepdim=True)).clamp_min(-FURTHEST)
    return ((away / STEP).round() * STEP).float()


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

    @classmethod
    def of(cls, view: ClientView) -> Self:
        """What the server knows of this client once it has declared its numbers of samples."""
        declared = {split: len(view.samples(split)) for split in ("train", "validation")}
        return cls(view.recipe, view.backbone, view.classes, view.capacity, view.rank, declared)

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

    def question(self, task: Task) -> str:
        """Stage, round and what is asked, in words."""
        asked = json.dumps(self.asked.of(task).to_settings(), sort_keys=True)
        return f"{task.stage} {task.round} {task.kind} {asked}"

    # under differential privacy

    def spreads(self, expected: Expected) -> dict[str, float] | None:
        """By array, how its noise is measured; None where the answer has no private release.

        One training sample moves the answer by a joint norm of 1 at most, each array over its spread.
        """
        return None

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
        candidates: the grid; a client answers for each how far it is behind.
    """

    split = "validation"
    asked = Asked
    candidates: ClassVar[tuple[float, ...]]

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """How far each candidate is behind."""
        self.answered.check(update, len(self.candidates), expected)

    def ranges(self, task: Task, expected: Expected) -> dict[str, Range]:
        """How far each candidate is behind."""
        return self.answered.ranges(len(self.candidates))

    def combine(self, answers: Sequence[LikelihoodT], recipe: Recipe) -> float:
        """The candidate of the best likelihood."""
        return self.candidates[int(self.answered.total(answers, recipe).argmax())]
