"""The server's side of a secure sum: the plan, and the sum from masked answers and revealed shares."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.federation.secure import shamir
from fedms.federation.secure.ciphers import agreed, public_key, stream
from fedms.federation.secure.encoding import Range, decode, quantum
from fedms.federation.secure.member import (
    Plan,
    as_bytes,
    digest,
    from_bytes,
    pair_mask,
    pair_purpose,
    threshold,
)

Ranges = Mapping[str, Mapping[str, Range]]
"""By client and array."""


class SecureSum:
    """One sum on its way.

    Attributes:
        session: its id, new for every sum.
        least: the fewest clients in a sum.
        keys: by client, both public keys.
    """

    def __init__(self, least: int) -> None:
        self.session = secrets.token_hex(16)
        self.keys: dict[str, bytes] = {}
        self.least = least
        self._order: list[str] = []
        self._shares: dict[str, list[bytes]] = {}

    def introduced(self, answers: Mapping[str, Tensor]) -> list[str]:
        """Take in the members' public keys; the members, in order."""
        self.keys = {client: from_bytes(array)[0] for client, array in answers.items()}
        self._order = sorted(self.keys)
        return self._order

    @property
    def needed(self) -> int:
        """The fewest members that must stay to the end."""
        return max(self.least, threshold(len(self._order)))

    def keys_of(self, members: Sequence[str]) -> Tensor:
        """Their public keys, [members, 64]."""
        return as_bytes([self.keys[each] for each in members])

    def shared(self, answers: Mapping[str, Tensor]) -> list[str]:
        """Take in encrypted shares; who is still there, in order."""
        self._shares = {client: from_bytes(array) for client, array in answers.items()}
        return sorted(self._shares)

    def shares_for(self, client: str) -> Tensor:
        """The encrypted shares for one member, from all that have shared."""
        place = self._order.index(client)
        return as_bytes([self._shares[each][place] for each in sorted(self._shares)])

    def plan(self, ranges: Ranges) -> Plan:
        """Who adds what. An array of fewer than the least number of clients is left out.

        Raises:
            FedmsError: nothing is left.
        """
        holders = defaultdict[str, list[str]](list)
        for client in sorted(ranges):
            for name in ranges[client]:
                holders[name].append(client)
        groups = defaultdict[tuple[str, ...], list[str]](list)
        for name, clients in sorted(holders.items()):
            if len(clients) >= self.least:
                groups[tuple(clients)].append(name)
        units = {
            name: quantum(ranges[client][name] for client in clients)
            for clients, names in groups.items()
            for name in names
        }
        made = tuple((tuple(names), clients) for clients, names in groups.items())
        return Plan(self.session, tuple(sorted(ranges)), made, units)

    def total(
        self,
        plan: Plan,
        ranges: Ranges,
        masked: Mapping[str, Mapping[str, Tensor]],
        revealed: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The sums over the clients whose masked answers came, float64.

        Raises:
            FedmsError: too few shares, or false ones.
        """
        seeds = self._secrets(plan, masked, revealed)
        pairs: dict[tuple[str, str], bytes] = {}
        totals = {}
        for names, members in plan.groups:
            there = [each for each in members if each in masked]
            lost = [each for each in members if each not in masked]
            for name in names:
                total = np.zeros(ranges[members[0]][name].low.numel(), dtype=np.uint32)
                for client in there:
                    total += masked[client][name].numpy().view(np.uint32).ravel()
                    total -= stream(seeds[client], name, total.size)
                    for other in lost:  # the mask that the other would have cancelled
                        if (client, other) not in pairs:
                            purpose = pair_purpose(plan.session, client, other)
                            pairs[client, other] = agreed(seeds[other], self.keys[client][:32], purpose)
                        total -= pair_mask(pairs[client, other], client, other, name, total.size)
                own = {client: ranges[client][name] for client in there}
                totals[name] = decode(name, total, own, plan.units[name])
        return totals

    def _secrets(
        self, plan: Plan, masked: Mapping[str, Mapping[str, Tensor]], revealed: Mapping[str, Tensor]
    ) -> dict[str, bytes]:
        """Of each member the seed of its own mask, or its key where its answer did not come."""
        rows = {client: from_bytes(array) for client, array in revealed.items()}
        found = {}
        for place, member in enumerate(plan.members):
            shares = {self._order.index(client) + 1: row[place] for client, row in sorted(rows.items())}
            enough = dict(list(shares.items())[: threshold(len(self._order))])
            secret = shamir.join(enough) if len(enough) == threshold(len(self._order)) else None
            if member in masked:
                known = self._shares[member][self._order.index(member)][:32]
                true = secret is not None and digest(secret) == known
            else:
                true = secret is not None and public_key(secret) == self.keys[member][:32]
            if secret is None or not true:
                raise FedmsError(f"the mask of {member} cannot be removed: shares are missing or false")
            found[member] = secret
        return found
