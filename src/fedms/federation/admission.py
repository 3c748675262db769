"""Which answers count: what an honest client can have sent, given what it was asked.

Everything that is checked follows from the task and the config, so no honest client is ever refused, however
skewed its data. How far training can move a number is bounded by its steps and the learning rate
(`training.reach`), for AdamW's steps are bounded whatever the gradients. What is plausible but untrue passes:
that is for robust averages, and docs/reliability.md says what is not promised.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedms.federation.exchanges import find_exchange
from fedms.federation.exchanges.base import Expected
from fedms.federation.exchanges.checks import RefusalError, check_costs, check_finite, check_shapes
from fedms.federation.messages import SUM, Task, Update
from fedms.federation.secure.member import Plan
from fedms.federation.server import Server


class Admission:
    """Checks answers for a server, whose ledger keeps what clients have declared."""

    def __init__(self, server: Server, classes: int, capacities: Mapping[str, int]) -> None:
        self.server = server
        self.classes = classes
        self.capacities = capacities

    def admitted(self, task: Task, update: Update) -> Update:
        """The answer, which counts, with its arrays unpacked; its numbers of samples are now declared.

        Raises:
            RefusalError: why it does not count.
        """
        if update.client != task.client:
            raise RefusalError("it answers in another client's name")
        exchange = find_exchange(task.kind)
        if SUM in task.settings:
            self._check_masked(task, update)
            return update
        before = self.server.ledger.declared.get(task.client, {})
        expected = self._expected(task, before)
        declared = exchange.declares(task, update, expected)
        update = exchange.unpacked(task, update, expected)
        check_finite(update.arrays)
        for costs in (update.metrics, update.metrics.get("evaluation", {})):
            check_costs(costs)
        exchange.check(task, update, self._expected(task, {**before, **declared}))
        self.server.ledger.declare(task.client, declared)
        return update

    def _check_masked(self, task: Task, update: Update) -> None:
        """Of a masked answer nothing but its form can be checked; its client has checked the rest."""
        wanted = Plan.of(task.settings[SUM]).arrays_of(task.client)
        ranges = find_exchange(task.kind).ranges(task, self.expected(task)) or {}
        shapes = {name: torch.empty_like(ranges[name].low, dtype=torch.int32) for name in wanted}
        check_shapes(update.arrays, shapes)
        for costs in (update.metrics, update.metrics.get("evaluation", {})):
            check_costs(costs)

    def expected(self, task: Task) -> Expected:
        """What is known of the client of a task."""
        return self._expected(task, self.server.ledger.declared.get(task.client, {}))

    def _expected(self, task: Task, declared: Mapping[str, int]) -> Expected:
        server, client = self.server, task.client
        capacity, rank = self.capacities[client], server.ranks[client]
        return Expected(server.recipe, server.backbone, self.classes, capacity, rank, declared)
