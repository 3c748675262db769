"""A client's side of a secure sum: its secrets, its masks, and what it refuses.

The secrets lie in one file of the client's own folder that only its owner can read. They are of one sum, and
mask one answer. Another sum, or the end of this one, replaces them; so a repeated round has new masks, and
whoever asks for those of an earlier sum gets nothing.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedms.core import seeds
from fedms.core.errors import FedmsError
from fedms.core.files import read_json, write_bytes
from fedms.federation.secure import shamir
from fedms.federation.secure.ciphers import agreed, public_key, sealed, stream, unsealed
from fedms.federation.secure.encoding import Range, encode

FILE = "secrets.json"
SEALED_BYTES = 2 * shamir.BYTES + 16
"""Of an encrypted pair of shares."""
KEYS, SHARES, REVEALED = "sum.keys", "sum.shares", "sum.revealed"
"""Arrays of bytes that travel beside a sum: public keys, encrypted shares, and shares that are revealed."""


@dataclass(frozen=True)
class Plan:
    """Who adds what in one sum, as every member is told."""

    session: str
    members: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Arrays, and the members that add them: clients may train different blocks"""
    units: Mapping[str, float]
    """By array, the size of the unit in which it is counted"""

    def to_settings(self) -> dict[str, Any]:
        """As plain values of a task."""
        return dict(vars(self))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:
        """What `to_settings` gave."""
        groups = tuple((tuple(names), tuple(members)) for names, members in values["groups"])
        return cls(values["session"], tuple(values["members"]), groups, dict(values["units"]))

    def arrays_of(self, client: str) -> list[str]:
        """What this member adds."""
        return [name for names, members in self.groups if client in members for name in names]

    def smallest(self, present: Sequence[str]) -> int:
        """The fewest of these members in the sum of any array."""
        return min(len({*members} & {*present}) for _, members in self.groups)


def threshold(members: int) -> int:
    """How many members must reveal their shares of a secret: more than half.

    A member reveals its share of one of another's two secrets. So nobody gets both of them by telling two
    halves different stories.
    """
    return members // 2 + 1


def digest(seed: bytes) -> bytes:
    """What may be known of the seed of a client's own mask before it is revealed."""
    return hashlib.sha256(b"fedms own mask" + seed).digest()


def as_bytes(rows: Sequence[bytes]) -> Tensor:
    """Rows of one length as they travel, uint8 [rows, length]."""
    joined = np.frombuffer(b"".join(rows), dtype=np.uint8).copy()
    return torch.from_numpy(joined).view(len(rows), -1)


def from_bytes(array: Tensor) -> list[bytes]:
    """The rows."""
    return [row.tobytes() for row in array.numpy()]


def pair_mask(seed: bytes, client: str, other: str, name: str, count: int) -> np.ndarray:
    """What the mask of this pair adds to the client's array; the other's subtracts it. uint32 [count]"""
    mask = stream(seed, name, count)
    return mask if client < other else np.uint32(0) - mask


def pair_purpose(session: str, client: str, other: str) -> str:
    """What the key of a pair is for; both sides say the same."""
    return f"fedms mask {session} {min(client, other)} {max(client, other)}"


class Member:
    """One client in secure sums.

    `once` is where clients share noise: a question's sum is then revealed for one group of them alone, since
    sums over two groups of the same noisy answers would hold less noise together.
    """

    def __init__(self, client: str, folder: Path, least: int, once: bool = False) -> None:
        self.client, self.least, self.once = client, least, once
        self._path = folder / FILE

    def introduce(self, session: str) -> Tensor:
        """Begin a sum: two new public keys, for masks and for what members send each other. [1, 64]"""
        mask, seal = secrets.token_bytes(32), secrets.token_bytes(32)
        self._write({"session": session, "mask": mask.hex(), "seal": seal.hex()})
        return as_bytes([public_key(mask) + public_key(seal)])

    def share(self, session: str, members: Sequence[str], keys: Tensor) -> Tensor:
        """Shares of both secrets, encrypted for each member, in their order.

        The row of this one is the digest of its own mask's seed, by which false shares are told.
        """
        held = self._held(session)
        self._check_members(members)
        if "members" in held:
            raise FedmsError("the server asks for the shares of one sum twice")
        own = secrets.token_bytes(32)
        limit = threshold(len(members))
        parts = [shamir.split(each, len(members), limit) for each in (bytes.fromhex(held["mask"]), own)]
        rows = []
        for other, key, first, second in zip(members, from_bytes(keys), *parts, strict=True):
            if other == self.client:
                kept = (first + second).hex()
                rows.append(digest(own).ljust(SEALED_BYTES, b"\0"))
                continue
            rows.append(sealed(self._channel(held, session, key, self.client, other), first + second, other))
        known = dict(zip(members, (key.hex() for key in from_bytes(keys)), strict=True))
        self._write({**held, "own": own.hex(), "kept": kept, "members": list(members), "keys": known})
        return as_bytes(rows)

    def masked(
        self,
        plan: Plan,
        question: str,
        shares: Tensor,
        addends: Mapping[str, tuple[Tensor, Range]],
        seed: int,
    ) -> dict[str, Tensor]:
        """The addends, masked: int32, which stand for integers mod 2^32.

        Args:
            question: which answer this is, in words.
            shares: what the members have sent to this one, in their order.
            seed: of the run, for rounding. It protects nothing; the masks come from the system.

        Raises:
            FedmsError: the sum would show too much, or a number is not as an honest client can answer it.
        """
        held = self._held(plan.session)
        self._check_members(plan.members)
        if "kept" not in held or "plan" in held or not {*plan.members} <= {*held["members"]}:
            raise FedmsError("the server asks for an answer of a sum out of its turn")
        if plan.smallest(plan.members) < self.least:
            raise FedmsError(f"the sum of an array is of fewer than privacy.least ({self.least}) clients")
        if unknown := {*plan.arrays_of(self.client)} - addends.keys():
            raise FedmsError(f"the server asks for {min(unknown)[:80]!r}, which this answer does not hold")
        found: dict[str, np.ndarray] = {}
        for name in plan.arrays_of(self.client):
            array, within = addends[name]
            rounding = seeds.numpy_generator(seed, "rounding", question, name, self.client)
            found[name] = encode(name, array, within, plan.units[name], rounding)
            found[name] = found[name] + stream(bytes.fromhex(held["own"]), name, found[name].size)
        for names, members in plan.groups:
            if self.client not in members:
                continue
            for other in (each for each in members if each != self.client):
                key = bytes.fromhex(held["keys"][other])[:32]
                pair = agreed(
                    bytes.fromhex(held["mask"]), key, pair_purpose(plan.session, self.client, other)
                )
                for name in names:
                    found[name] = found[name] + pair_mask(pair, self.client, other, name, found[name].size)
        received = dict(zip(plan.members, (row.hex() for row in from_bytes(shares)), strict=True))
        self._write({**held, "plan": plan.to_settings(), "received": received, "question": question})
        return {
            name: torch.from_numpy(array.view(np.int32).reshape(tuple(addends[name][1].low.shape)))
            for name, array in found.items()
        }

    def reveal(self, session: str, survivors: Sequence[str]) -> Tensor:
        """For each member of the sum a share: of its own mask's seed if its answer came, else of its key.

        [members, bytes]. Then this sum's secrets are gone.

        Raises:
            FedmsError: what remains would show too much.
        """
        held = self._held(session)
        if "plan" not in held:
            raise FedmsError("the server asks for shares of a sum that this client has not answered")
        plan, there = Plan.of(held["plan"]), {*survivors}
        if not there <= {*plan.members} or self.client not in there:
            raise FedmsError("the server names survivors that are no members of the sum")
        if plan.smallest(survivors) < self.least:
            raise FedmsError(f"fewer than privacy.least ({self.least}) clients are left in a sum")
        answered = self._answered()
        before = {*answered.get(held["question"], survivors)}
        if (differing := len(before ^ there)) and (self.once or differing < self.least):
            raise FedmsError("this sum and an earlier one of the same question would show single clients")
        rows = []
        for member in plan.members:
            data = bytes.fromhex(held["kept"] if member == self.client else held["received"][member])
            text: bytes | None = data
            if member != self.client:
                key = bytes.fromhex(held["keys"][member])
                text = unsealed(self._channel(held, session, key, member, self.client), data, self.client)
            if text is None:
                raise FedmsError(f"the share of {member} was altered on its way")
            rows.append(text[shamir.BYTES :] if member in there else text[: shamir.BYTES])
        self._write({}, {**answered, held["question"]: sorted(there)})
        return as_bytes(rows)

    def _channel(self, held: Mapping[str, Any], session: str, keys: bytes, sender: str, to: str) -> bytes:
        """The key for what one member sends another."""
        return agreed(bytes.fromhex(held["seal"]), keys[32:], f"fedms share {session} {sender} {to}")

    def _check_members(self, members: Sequence[str]) -> None:
        if len({*members}) != len(members) or self.client not in members or len(members) < self.least:
            raise FedmsError(f"a sum of {len(members)} clients: at least {self.least} are needed")

    def _held(self, session: str) -> dict[str, Any]:
        content = self._content().get("sum", {})
        if content.get("session") != session:
            raise FedmsError("the server asks about a sum that is over, or that this client does not know")
        return dict(content)

    def _answered(self) -> dict[str, list[str]]:
        """By question, who was in its last sum."""
        return dict(self._content().get("answered", {}))

    def _content(self) -> dict[str, Any]:
        return dict(read_json(self._path)) if self._path.exists() else {}

    def _write(self, held: Mapping[str, Any], answered: Mapping[str, list[str]] | None = None) -> None:
        content = {"sum": held, "answered": self._answered() if answered is None else answered}
        write_bytes(self._path, json.dumps(content).encode(), mode=0o600)
