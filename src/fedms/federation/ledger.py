"""What the server knows of each client: what has reached it, what of its work was counted, how many samples
it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedms.federation.exchanges.base import Cost
from fedms.federation.messages import Task, Update


class Ledger:
    """Records by client.

    Attributes:
        delivered: by client, the newest edition of what is frozen that has reached it.
        informed: clients that have the discriminant as it now stands.
        booked: by client, what it has computed once and keeps, by name: which one of it has been counted.
        declared: by client, how many samples it says that it holds, by split.
    """

    def __init__(self) -> None:
        self.delivered: dict[str, int] = {}
        self.informed: set[str] = set()
        self.booked: dict[str, dict[str, str]] = {}
        self.declared: dict[str, dict[str, int]] = {}

    def record_delivery(self, tasks: Sequence[Task], updates: Sequence[Update], edition: int) -> None:
        """Record that clients who answered have received this edition of what is frozen, and the
        discriminant.
        """
        answered = {update.client for update in updates}
        self.delivered |= dict.fromkeys(sorted(answered), edition)
        informed = {task.client for task in tasks if "discriminant.means" in task.arrays}
        self.informed |= informed & answered

    def declare(self, client: str, declared: Mapping[str, int]) -> None:
        """Record how many samples a client holds."""
        self.declared.setdefault(client, {}).update(declared)

    def book(self, costs: Iterable[tuple[str, Cost]], evaluation: bool = False) -> int:
        """Operations to count for these answers: each a client and what it cost.

        Evaluation has books of its own, so that training costs the same however often it is evaluated. What a
        client computes once and keeps counts where an answer first stands on it. A client that has lost it,
        as after a
        resumption, computes it again: that is the price of the accident, not of the method, and is not
        counted.
        """
        total = 0
        for client, cost in costs:
            total += cost.flops
            booked = self.booked.setdefault(client, {})
            for what, (which, flops) in cost.once.items():
                if evaluation and booked.get(what) == which:
                    continue
                name = f"evaluation {what}" if evaluation else what
                if booked.get(name) != which:
                    booked[name] = which
                    total += int(flops)
        return total

    def forget(self, client: str) -> None:
        """Forget what a client has received: its disk was lost."""
        self.delivered.pop(client, None)
        self.informed.discard(client)

    def forget_clients(self) -> None:
        """Forget what clients have received, computed and declared."""
        self.delivered.clear()
        self.informed.clear()
        self.booked.clear()
        self.declared.clear()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "delivered": dict(sorted(self.delivered.items())),
            "informed": sorted(self.informed),
            "booked": self.booked,
            "declared": self.declared,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.delivered, self.informed = dict(state["delivered"]), set(state["informed"])
        self.booked, self.declared = state["booked"], state["declared"]
