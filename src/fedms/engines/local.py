"""The local engine: clients one after another in this process, or in worker processes of one torch thread each.

Either way a task reaches the client's side as bytes and its update comes back as bytes, and each client's state lies in
its own folder. A client always goes to the same worker, where its cache is.

A worker that ends, or is ended since its client did not answer in time, takes the answer of that client with it and nothing else: another
worker follows in its place and goes on with the next client. Nothing late can arrive, since who is late is not there any more.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

from fedms.config import Config
from fedms.core.files import sweep
from fedms.engines.answers import respond
from fedms.engines.autotune import Way, decide, measured
from fedms.engines.memory import keep_freed_memory, peak_memory
from fedms.engines.pipe import MEASURE, bundled, unbundled
from fedms.engines.process import LostError, WorkerProcess
from fedms.federation.client import ClientHost
from fedms.federation.messages import Failure, Task, Update, decode_answer, encode
from fedms.federation.world import World

Arrived = Callable[[Update | Failure], None]
"""Is told of each answer."""
Ask = Callable[[bytes, int], bytes]
"""From a message, and for how many clients it is, to the answer."""


class LocalEngine:
    """Carries tasks to clients on this machine. What their frozen prefixes come to is shared through the folder `prefixes`, if any.

    Attributes:
        sent, received: bytes of all tasks and updates so far.
        workers: how many processes train.
        choice: in what way clients train, and why.
    """

    def __init__(self, world: World, folder: Path, prefixes: Path | None = None) -> None:
        self.sent = 0
        self.received = 0
        self._counting = threading.Lock()
        self._folder = folder
        self._prefixes = prefixes
        self._homes = {name: number for number, name in enumerate(world.clients)}
        self._samples = {name: len(client.train) for name, client in world.clients.items()}
        self._deadline = world.config.federation.deadline_seconds
        self._world = world
        self.workers = 0
        self._host: ClientHost | None = None
        self._workers: list[WorkerProcess] = []
        try:
            self.choice = decide(world, worker_count(world.config), self._measure)
            self._open(self.choice.way.workers)
        except BaseException:
            self.close()
            raise

    def _open(self, workers: int) -> None:
        """Have so many processes; what is to be stopped at a deadline must be one of its own."""
        if workers == self.workers:
            return
        self._close_processes()
        self.workers, self._host, self._workers = workers, None, []
        if workers == 1 and self._deadline is None:
            keep_freed_memory()
            self._host = ClientHost(self._world, self._folder, prefixes=self._prefixes)
        else:
            config, folder, prefixes = self._world.config, self._folder, self._prefixes
            self._workers = [
                WorkerProcess(config, folder, number, workers, prefixes) for number in range(workers)
            ]

    def _measure(self, way: Way) -> float:
        """Milliseconds a sample, all processes at work at the same time; infinite where one of them dies of it."""
        self._open(way.workers)
        if self._host:
            return measured(self._world, way.stack, self._folder / "cache")
        with ThreadPoolExecutor(way.workers) as pool:
            try:
                took = list(
                    pool.map(
                        lambda worker: float(worker.ask(MEASURE + str(way.stack).encode())), self._workers
                    )
                )
            except LostError:
                return math.inf
        rate = sum(1 / each for each in took)
        return 1 / rate if rate else math.inf

    def run(self, tasks: Sequence[Task], arrived: Arrived = lambda update: None) -> list[Update | Failure]:
        """Have every task done; answers in the order of the tasks. `arrived` is called as each comes in.

        Raises:
            FedmsError: a worker process cannot be started, or a client's state could not be written.
        """
        answers: dict[int, Update | Failure] = {}
        errors: list[BaseException] = []

        def serve(ask: Ask, mine: Sequence[int]) -> None:
            try:
                for group in self._groups(tasks, mine):
                    clients = [tasks[index].client for index in group]
                    messages = [
                        encode(tasks[index]) for index in group
                    ]  # not all at once: there may be thousands
                    with self._counting:
                        self.sent += sum(map(len, messages))
                    got = self._answers(ask, clients, messages, arrived)
                    answers.update(zip(group, got, strict=True))
            except Exception as error:
                errors.append(error)

        if host := self._host:
            serve(lambda message, clients: respond(host, message), range(len(tasks)))
        else:
            threads = []
            for number, worker in enumerate(self._workers):
                mine = [
                    index
                    for index, task in enumerate(tasks)
                    if self._homes[task.client] % self.workers == number
                ]
                threads.append(
                    threading.Thread(target=serve, args=(partial(self._wait, worker), mine), daemon=True)
                )
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        return [answers[index] for index in range(len(tasks))]

    def _groups(self, tasks: Sequence[Task], mine: Sequence[int]) -> list[list[int]]:
        """Which of these tasks a process does together: those of local training, clients with about as many steps."""
        size = self.choice.way.stack
        if size == 1 or not all(tasks[index].kind == "train" for index in mine):
            return [[index] for index in mine]
        ordered = sorted(mine, key=lambda index: self._samples[tasks[index].client])
        return [ordered[at : at + size] for at in range(0, len(ordered), size)]

    def _wait(self, worker: WorkerProcess, message: bytes, clients: int) -> bytes:
        """A worker's answer; several clients together have as long as they have one after another."""
        return worker.ask(message, self._deadline and self._deadline * clients)

    def _answers(
        self, ask: Ask, clients: Sequence[str], messages: Sequence[bytes], arrived: Arrived
    ) -> list[Update | Failure]:
        """The answers of some clients, or what stands in their places; where those of several are lost at once, each is asked alone."""
        try:
            got = (
                [ask(messages[0], 1)]
                if len(clients) == 1
                else unbundled(ask(bundled(messages), len(clients)))
            )
        except LostError as lost:
            for client in clients:
                sweep(self._folder / "clients" / client)  # of what it was writing
            if len(clients) == 1:
                return [Failure(clients[0], lost.kind, str(lost))]
            alone = zip(clients, messages, strict=True)
            return [
                answer
                for client, message in alone
                for answer in self._answers(ask, [client], [message], arrived)
            ]
        return [self._taken(client, data, arrived) for client, data in zip(clients, got, strict=True)]

    def _taken(self, client: str, data: bytes, arrived: Arrived) -> Update | Failure:
        """One client's answer, or what stands in its place."""
        update = decode_answer(data)
        with self._counting:
            self.received += len(data)
        arrived(update)
        return update

    def peak_memory(self) -> int:
        """Bytes of resident memory at most, over this process and its workers."""
        return peak_memory() + sum(worker.peak_memory() for worker in self._workers)

    def close(self) -> None:
        self._close_processes()
        shutil.rmtree(self._folder / "cache", ignore_errors=True)

    def _close_processes(self) -> None:
        if self._host:
            self._host.close()
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def worker_count(config: Config) -> int:
    """Worker processes: as configured, else one for each core; never more than there are clients."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = config.engine.workers or (1 if config.device == "cuda" else cores)
    return min(wanted, config.partition.clients)
