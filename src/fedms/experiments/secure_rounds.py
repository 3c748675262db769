"""Rounds whose answers reach the server as secure sums: four messages a client and sum.

Public keys, encrypted shares, masked answers, and the shares that remove the masks from the sum. A client may
be lost between any two of them, as long as enough stay. With too few, all are asked again with new secrets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fedms.core.errors import FedmsError
from fedms.core.formatting import plural
from fedms.experiments.rounds import Line, Question, Rounds
from fedms.federation.exchanges import FINAL_TEST, INTRODUCE, REVEAL, SHARE, TRAINING
from fedms.federation.exchanges.base import Exchange
from fedms.federation.exchanges.summing import SumAsked
from fedms.federation.messages import SUM, Task, Update
from fedms.federation.secure.coordinator import SecureSum
from fedms.federation.secure.encoding import Range
from fedms.federation.secure.member import KEYS, REVEALED, SHARES
from fedms.model.arrays import Arrays


class SecureRounds(Rounds):
    """As `Rounds`; an answer that can be summed comes as one update in all clients' name."""

    def _enough(
        self, question: Question, clients: Sequence[str], wanted: int, needed: int, spare: int
    ) -> list[Update]:
        """As `Rounds._enough`. The sum is of `needed` clients at least, and of `privacy.least`."""
        line, exchange = question.line, question.exchange
        nothing = exchange is TRAINING and self.server.recipe.private  # a private client sends nothing of it
        if exchange is FINAL_TEST or nothing:  # what each personal model comes to is no sum
            return super()._enough(question, clients, wanted, needed, spare)
        needed, waiting = max(needed, self.server.config.privacy.least), list(clients)
        for attempt in range(1, self.attempts + 1):
            now, others = waiting[: wanted + spare], waiting[wanted + spare :]
            before = len(line.failures)
            try:
                return [self._sum(question, now, wanted, needed)]
            except FedmsError as error:
                why = str(error)
            lost = {failure.client for failure in line.failures[before:]}
            heard = [client for client in now if client not in lost]
            waiting = [*heard, *others, *(client for client in now if client in lost)]
            if attempt < self.attempts:
                self.observer.note(f"{line.place}, {exchange.kind}: {why}; asking again")
        self.folder.append_metrics(line.record())
        after = f"after {plural(self.attempts, 'attempt')}"
        raise FedmsError(f"{line.place}, {exchange.kind}: {why}, {after}; go on with --resume")

    def _sum(self, question: Question, clients: Sequence[str], most: int, needed: int) -> Update:
        """One secure sum.

        Raises:
            FedmsError: it cannot be made: too few clients are left, or a share was false.
        """
        line, exchange = question.line, question.exchange
        if exchange is TRAINING:
            line.cohort += [client for client in clients if client not in line.cohort]
        made = SecureSum(self.server.config.privacy.least)
        step = partial(self._step, question, made)
        came = step(INTRODUCE, clients, [], 1, most=most)
        members = made.introduced({update.client: update.arrays[KEYS] for update in came})
        needed = max(needed, made.needed)
        _check_enough(members, needed, line)
        keys = {KEYS: made.keys_of(members)}
        came = step(SHARE, members, members, len(members), also=keys)
        there = made.shared({update.client: update.arrays[SHARES] for update in came})
        _check_enough(there, needed, line)
        tasks = self.server.tasks(
            exchange, there, question.stage, line.number, question.arrays, question.asked
        )
        ranges = {task.client: self._ranges(exchange, task) for task in tasks}
        plan = made.plan(ranges)
        if not plan.groups:
            raise FedmsError(f"no array is answered by privacy.least ({made.least}) clients")
        told = [
            replace(
                task,
                arrays=task.arrays | {SHARES: made.shares_for(task.client)},
                settings=task.settings | {SUM: plan.to_settings()},
            )
            for task in tasks
        ]
        answers = self._exchange(line, told, len(told), question.evaluation)
        masked = {update.client: update.arrays for update in answers}
        survivors = sorted(masked)
        _check_enough(survivors, needed, line)
        came = step(REVEAL, survivors, survivors, len(plan.members))
        revealed = {update.client: update.arrays[REVEALED] for update in came}
        _check_enough(list(revealed), made.needed, line)
        totals = made.total(plan, ranges, masked, revealed)
        expected = {task.client: self.admission.expected(task) for task in tasks}
        parts = {
            name: [expected[each] for each in group if each in masked]
            for names, group in plan.groups
            for name in names
        }
        return exchange.summed(totals, parts)

    def _step(
        self,
        question: Question,
        made: SecureSum,
        exchange: Exchange[Any, Any, Any],
        clients: Sequence[str],
        named: Sequence[str],
        rows: int,
        most: int | None = None,
        also: Arrays | None = None,
    ) -> list[Update]:
        """Have one step of the sum done by these clients."""
        asked = SumAsked(made.session, list(named), rows)
        line = question.line
        tasks = self.server.tasks(exchange, clients, question.stage, line.number, also, asked)
        return self._exchange(line, tasks, len(tasks) if most is None else most, question.evaluation)

    def _ranges(self, exchange: Exchange[Any, Any, Any], task: Task) -> dict[str, Range]:
        ranges = exchange.ranges(task, self.admission.expected(task))
        if ranges is None:
            raise FedmsError(f"privacy.secure_sum: the answers to {exchange.kind} are no sums")
        return ranges


def _check_enough(clients: Sequence[str], needed: int, line: Line) -> None:
    if len(clients) < needed:
        last = f"; {line.failures[-1].client}: {line.failures[-1].reason}" if line.failures else ""
        raise FedmsError(f"{len(clients)} of {plural(needed, 'answer')} needed{last}")
