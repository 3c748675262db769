"""The engine that carries tasks to sites: its own loop of sending and collecting, one message a task.

A late answer is never read. A site that comes back on another connection has lost its task at once. A site
that was missed once is not waited for again until it is back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedms.core.errors import FedmsError
from fedms.core.formatting import plural
from fedms.engines.base import Answer, Arrived, ClosedAtEnd, read_answer
from fedms.engines.flower.known import KnownSites
from fedms.engines.flower.post import Letter, Node, Return
from fedms.engines.flower.sites import PAUSE, Sites
from fedms.engines.flower.wire import TASK, KnownRun, Reply, Request, Terms, config_for_sites
from fedms.engines.memory import peak_memory
from fedms.federation.client_view import STATE
from fedms.federation.identity import ModelIdentity
from fedms.federation.messages import Failure, Task, Update, encode
from fedms.federation.registration import declarations
from fedms.federation.sites import Declared, ServerWorld


@dataclass(frozen=True)
class Waiting:
    """A task on its way."""

    index: int
    task: Task
    node: Node
    sent: float
    """When, by the monotonic clock"""


class FlowerEngine(ClosedAtEnd):
    """Carries tasks to sites. The protocol is `engines.base.Engine`.

    Attributes:
        workers: how many sites there are.
        sent, received: bytes of all tasks and answers so far.
        run_id: of the run, the same after a resumption.
    """

    def __init__(self, world: ServerWorld, sites: Sites, folder: Path) -> None:
        self.world, self.sites = world, sites
        self.sent = self.received = 0
        self.workers = len(world.clients)
        self.note = f"clients train at {plural(self.workers, 'site')}, over {world.config.engine.superlink}"
        self._known = KnownSites.open(folder)
        self.run_id = self._known.run
        start, joins = world.config.start_from, world.config.join is not None
        self._before = KnownSites.read(Path(start).expanduser()) if start and not joins else None
        self._terms: dict[str, Terms] = {}
        self._told: set[tuple[str, Node]] = set()
        self._missed: set[str] = set()
        self._number = time.time_ns()
        self._model = asdict(ModelIdentity.of(world.backbone))

    def run(self, tasks: Sequence[Task], arrived: Arrived = lambda answer: None) -> list[Answer]:
        """Have every task done. The answers come in the order of the tasks; a failure replaces a lost one.

        Raises:
            FedmsError: the way to the sites is gone.
        """
        answers: dict[int, Answer] = {}

        def book(index: int, answer: Answer) -> None:
            answers[index] = answer
            arrived(answer)

        self._find({task.client for task in tasks})
        waiting = dict[str, Waiting]()
        for index, task in enumerate(tasks):
            if failure := self._unfit(task.client):
                book(index, failure)
            else:
                node = self.sites.homes[task.client]
                waiting[self._send(task, node)] = Waiting(index, task, node, time.monotonic())
        while waiting:
            for back in self.sites.post.collect(list(waiting)):
                done = waiting.pop(back.letter)
                book(done.index, self._opened(done, back))
            self.sites.look()
            for letter, each in [*waiting.items()]:
                if failure := self._lost(each):
                    del waiting[letter]
                    book(each.index, failure)
            if waiting:
                time.sleep(PAUSE)
        self._known.save()
        return [answers[index] for index in range(len(tasks))]

    def _find(self, clients: set[str]) -> None:
        """Wait for sites that are not there, unless they were missed before."""
        self.sites.look()
        self._missed -= self.sites.homes.keys()
        self.sites.wait(clients - self._missed, self.world.config.engine.patience_seconds)
        self._missed |= clients - self.sites.homes.keys()

    def _unfit(self, client: str) -> Failure | None:
        """Why a client cannot be asked now; None where it can."""
        if client not in self.sites.homes:
            return Failure(client, "died", f"its site {self.sites.trouble.get(client, 'is not there')}")
        hello = self.sites.hellos[client]
        if client not in self.world.declared:
            self.world.declare(client, Declared(hello.samples, hello.capacity))
        if self._known.data(client, hello.data) != hello.data:
            return Failure(client, "refused", "its data changed since the run began")
        before = self._before_of(client)
        if before is not None and STATE not in hello.kept(before):
            return Failure(client, "lost", "what it trained in the run before is gone from its folder")
        there = hello.kept(self.run_id)
        gone = {kind for kind, at in self._known.kept(client).items() if there.get(kind, (-1, -1)) < at}
        if STATE in gone:  # which no server can send again
            return Failure(client, "lost", "what it trained is gone: put its site's folder back")
        if gone:
            self._known.keep(client, there)
            return Failure(client, "lost", "it is sent again what it was sent once")
        return None

    def _before_of(self, client: str) -> str | None:
        """The run before, where the client keeps what it trained in it."""
        before = self._before
        return before.run if before is not None and STATE in before.kept(client) else None

    def _send(self, task: Task, node: Node) -> str:
        terms, data = self._terms_for(task.client), encode(task)
        known = self.sites.hellos[task.client].runs.get(self.run_id)
        needed = (task.client, node) not in self._told and (known is None or known.terms != terms.digest)
        self._number += 1
        request = Request(self.run_id, self._number, terms.digest, data, terms if needed else None)
        self.sent += len(data)
        topic = f"{task.stage}-{task.round}-{task.kind}"
        return self.sites.post.send([Letter(node, TASK, request.to_bytes(), topic)])[0]

    def _opened(self, done: Waiting, back: Return) -> Answer:
        """The answer in what came back."""
        client = done.task.client
        if back.data is None:
            return Failure(client, "died" if back.gone else "error", back.reason)
        try:
            reply = Reply.of(back.data)
        except FedmsError as error:
            return Failure(client, "refused", str(error))
        self.received += len(reply.answer)
        answer = read_answer(client, reply.answer)
        if isinstance(answer, Update):  # a site that failed may not even have kept the terms
            self._told.add((client, done.node))
            self._remember(client, reply)
        return answer

    def _remember(self, client: str, reply: Reply) -> None:
        """Keep what a site says that it holds; a hello from before is then out of date."""
        self._known.keep(client, reply.kept)
        hello = self.sites.hellos[client]
        runs = {**hello.runs, self.run_id: KnownRun(self._terms_for(client).digest, reply.kept)}
        self.sites.hellos[client] = replace(hello, runs=runs)
        self.world.declare(client, Declared(hello.samples, hello.capacity, reply.counts))

    def _lost(self, each: Waiting) -> Failure | None:
        """Why a task that is on its way will not be waited for any longer; None where it is."""
        client, deadline = each.task.client, self.world.config.federation.deadline_seconds
        if self.sites.homes.get(client, each.node) != each.node:
            return Failure(client, "died", "its site came back without the task")
        if deadline is not None and time.monotonic() - each.sent > deadline:
            return Failure(client, "deadline", f"no answer within {deadline:g} s")
        return None

    def _terms_for(self, client: str) -> Terms:
        if client not in self._terms:
            world, config = self.world, self.world.config
            self._terms[client] = Terms(
                self.run_id,
                config_for_sites(config),
                world.class_names,
                world.dealt[client],
                world.ranks[client],
                self._model,
                world.backbone.kernel,
                tuple(declarations(config)["methods"]),
                self._before_of(client),
            )
        return self._terms[client]

    def peak_memory(self) -> int:
        """Bytes of resident memory of this process at most. Sites do not tell theirs."""
        return peak_memory()

    def close(self) -> None:
        """Nothing stays open here: the world closes the way to the sites."""
