"""What a secure sum asks beside its question: public keys, encrypted shares, and shares that are revealed.

What leaves a client: public keys and its numbers of samples (exchange `sum-introduce`), shares of its secrets
that only other clients can read (`sum-share`), and for each other client a share of one of its two secrets
(`sum-reveal`). docs/secure-sums.md says what the server learns from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fedms.federation.client_view import ClientView
from fedms.federation.exchanges.base import Answer, Asked, Exchange, Expected
from fedms.federation.exchanges.checks import check_shapes
from fedms.federation.messages import Task, Update
from fedms.federation.recipe import Recipe
from fedms.federation.secure import shamir
from fedms.federation.secure.member import KEYS, REVEALED, SEALED_BYTES, SHARES, Member


@dataclass(frozen=True)
class SumAsked(Asked):
    """Which sum, and which clients: those in it, or those whose masked answers came."""

    session: str
    clients: list[str]
    rows: int
    """Rows of the answer's array"""


@dataclass(frozen=True)
class Bytes(Answer):
    """One array of bytes."""

    name: str
    content: Tensor
    """uint8 [rows, bytes]"""
    validation: int
    """How many validation samples the client holds; `samples` are those of training"""

    def arrays(self) -> dict[str, Tensor]:
        """The one array."""
        return {self.name: self.content}

    def metrics(self) -> dict[str, Any]:
        """The number of validation samples, and no costs."""
        return {"flops": 0, "once": {}, "validated": self.validation}

    @classmethod
    def of(cls, update: Update) -> Self:
        """What an update says."""
        [(name, content)] = update.arrays.items()
        return cls(int(update.weight), name, content, int(update.metrics["validated"]))


class SumExchange(Exchange[SumAsked, Bytes, dict[str, Tensor]]):
    """One step of a secure sum.

    Attributes:
        name: of the array that travels.
        width: bytes of one of its rows.
    """

    split = "train"
    asked = SumAsked
    answered = Bytes
    name: ClassVar[str]
    width: ClassVar[int]

    def answer(self, view: ClientView, asked: SumAsked) -> Bytes:
        """The array."""
        content = self.content(view, asked, member_of(view))
        return Bytes(len(view.samples("train")), self.name, content, len(view.samples("validation")))

    def content(self, view: ClientView, asked: SumAsked, member: Member) -> Tensor:
        """The array's content."""
        raise NotImplementedError

    def declares(self, task: Task, update: Update, expected: Expected) -> dict[str, int]:
        """Training and validation samples: the sums' ranges follow from them."""
        declared = super().declares(task, update, expected)
        return declared | {"validation": expected.samples("validation", update.metrics.get("validated"))}

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """A row a client."""
        wanted = torch.empty(task.settings["rows"], self.width, dtype=torch.uint8, device="meta")
        check_shapes(update.arrays, {self.name: wanted})

    def combine(self, answers: Sequence[Bytes], recipe: Recipe) -> dict[str, Tensor]:
        """Nothing: the sum is made of them by `secure.coordinator`."""
        return {}


class IntroduceExchange(SumExchange):
    """Public keys of one sum."""

    kind, name, width = "sum-introduce", KEYS, 64

    def content(self, view: ClientView, asked: SumAsked, member: Member) -> Tensor:
        """Both public keys."""
        return member.introduce(asked.session)


class ShareExchange(SumExchange):
    """Shares of a client's secrets, which only the other clients can read."""

    kind, name, width = "sum-share", SHARES, SEALED_BYTES

    def content(self, view: ClientView, asked: SumAsked, member: Member) -> Tensor:
        """A row for each client of the sum."""
        return member.share(asked.session, asked.clients, view.arrays[KEYS])


class RevealExchange(SumExchange):
    """What is needed to remove the masks from a sum."""

    kind, name, width = "sum-reveal", REVEALED, shamir.BYTES

    def content(self, view: ClientView, asked: SumAsked, member: Member) -> Tensor:
        """A row for each client of the sum."""
        return member.reveal(asked.session, asked.clients)


def member_of(view: ClientView) -> Member:
    """The client as a member of secure sums."""
    privacy = view.config.privacy
    return Member(view.client, view.folder.path, privacy.least, once=privacy.noise == "shared")
