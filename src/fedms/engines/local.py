"""The local engine: clients in this process one after another, or in worker processes of one thread each.

Either way a task reaches the client's side as bytes, its answer comes back as bytes, and each client's state
lies in a folder of its own. The tasks of an exchange are one queue in an order that has all workers end at
about the same time (`engines.schedule`), and a free worker takes the next. Workers share the frozen prefixes'
outputs as files.

A worker that dies, or is killed at the deadline, loses the answer of the client that it worked for, and no
other. A new worker goes on with the next client. No answer can be late, since its process is gone.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from fedms.config import Config
from fedms.core.files import sweep
from fedms.engines.autotune import Way, decide, measured
from fedms.engines.base import Answer, Arrived, ClosedAtEnd, read_answer
from fedms.engines.host import respond
from fedms.engines.memory import keep_freed_memory, peak_memory
from fedms.engines.pipe import MEASURE, bundled, unbundled
from fedms.engines.process import LostError, WorkerProcess
from fedms.engines.schedule import alike, in_order
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import TRAINING
from fedms.federation.messages import Failure, Task, encode
from fedms.federation.registration import declarations
from fedms.federation.world import World
from fedms.training.device import resolved

LARGE = 500_000_000
"""Parameters of a model of which each worker's own copy would take 2 GB in float32."""

SHARED = "shared"
"""Folder of the prefixes that the workers of a run share."""

Ask = Callable[[bytes, int], bytes]
"""From a message, and the number of clients that it is for, to the answer."""


class LocalEngine(ClosedAtEnd):
    """Carries tasks to clients on this machine. The protocol is `engines.base.Engine`.

    The folder `prefixes`, if any, shares the frozen prefixes' outputs with other runs.

    Attributes:
        world: the world of this process.
        sent, received: bytes of all tasks and answers so far.
        workers: how many processes train.
        processes: the worker processes; empty while clients train in this process.
        choice: in what way clients train, and why.
    """

    def __init__(self, world: World, folder: Path, prefixes: Path | None = None) -> None:
        self.world = world
        self.sent = 0
        self.received = 0
        self.workers = 0
        self.processes: list[WorkerProcess] = []
        self._host: ClientHost | None = None
        self._counting = threading.Lock()
        self._folder = folder
        self._prefixes = prefixes
        self._samples = {name: len(client.train) for name, client in world.clients.items()}
        self._deadline = world.config.federation.deadline_seconds
        self._remove_cache()  # what a killed run left is not sure to be whole
        try:
            workers = worker_count(world.config, world.backbone.parameter_count)
            self.choice = decide(world, min(workers, len(world.clients)), self._measure, folder / "cache")
            self._open(self.choice.way.workers)
        except BaseException:
            self.close()
            raise

    @property
    def note(self) -> str:
        """One sentence on the way clients train, and why; empty where there was no choice."""
        return self.choice.why

    def _open(self, workers: int) -> None:
        """Start `workers` processes. One is this process, unless a deadline needs a process to kill."""
        if workers == self.workers:
            return
        self._close_processes()
        self.workers, self._host, self.processes = workers, None, []
        if workers == 1 and self._deadline is None:
            keep_freed_memory()
            self._host = ClientHost(self.world, self._folder, prefixes=self._prefixes)
        else:
            config, folder, prefixes = self.world.config, self._folder, self._prefixes
            if workers > 1 and prefixes is None:
                prefixes = folder / "cache" / SHARED
            data, kernel = self.world.glance, self.world.backbone.kernel
            self.processes = [
                WorkerProcess(config, data, folder, number, workers, prefixes, kernel)
                for number in range(workers)
            ]

    def _measure(self, way: Way) -> float:
        """Milliseconds a sample, with all processes at work at the same time; infinite where one dies."""
        self._open(way.workers)
        if self._host:
            return measured(self.world, way.stack, self._folder / "cache")
        question = MEASURE + str(way.stack).encode()
        with ThreadPoolExecutor(way.workers) as pool:
            try:
                took = list(pool.map(lambda worker: float(worker.ask(question)), self.processes))
            except LostError:
                return math.inf
        rate = sum(1 / each for each in took)
        return 1 / rate if rate else math.inf

    def run(self, tasks: Sequence[Task], arrived: Arrived = lambda answer: None) -> list[Answer]:
        """Have every task done. The answers come in the order of the tasks; a failure replaces a lost one.

        Raises:
            StorageError: a client's state could not be written. A client without its state would change the
                result, so this is not the client's failure.
            FedmsError: a worker process cannot be started.
        """
        answers: dict[int, Answer] = {}
        errors: list[BaseException] = []
        queue = self._queue(tasks)

        def serve(ask: Ask) -> None:
            try:
                while not errors and (group := _next(queue)):
                    clients = [tasks[index].client for index in group]
                    # encoded group by group, since there may be thousands of tasks
                    messages = [encode(tasks[index]) for index in group]
                    with self._counting:
                        self.sent += sum(map(len, messages))
                    found = self._answers(ask, clients, messages, arrived)
                    answers.update(zip(group, found, strict=True))
            except Exception as error:
                errors.append(error)

        if host := self._host:
            serve(lambda message, clients: respond(host, message))
        else:
            asks = [partial(self._wait, worker) for worker in self.processes]
            threads = [threading.Thread(target=serve, args=(ask,), daemon=True) for ask in asks]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        return [answers[index] for index in range(len(tasks))]

    def _queue(self, tasks: Sequence[Task]) -> deque[list[int]]:
        """The tasks in the order in which they are begun. A group is done together by one process: training
        tasks of clients with about as many steps.
        """
        if self.workers == 1 and self.choice.way.stack == 1:
            return deque([index] for index in range(len(tasks)))
        together = all(task.kind == TRAINING.kind for task in tasks)
        size = min(self.choice.way.stack, -(-len(tasks) // self.workers)) if together else 1
        samples = [self._samples[task.client] for task in tasks]
        groups = alike(samples, max(size, 1))
        costs = [sum(samples[index] for index in group) for group in groups]
        return deque(groups[place] for place in in_order(costs, self.workers))

    def _wait(self, worker: WorkerProcess, message: bytes, clients: int) -> bytes:
        """A worker's answer. Clients together have as much time as clients one after another."""
        return worker.ask(message, self._deadline and self._deadline * clients)

    def _answers(
        self, ask: Ask, clients: Sequence[str], messages: Sequence[bytes], arrived: Arrived
    ) -> list[Answer]:
        """The answers of some clients. Where a bundle of several is lost, each client is asked alone."""
        try:
            if len(clients) == 1:
                found = [ask(messages[0], 1)]
            else:
                found = unbundled(ask(bundled(messages), len(clients)))
        except LostError as lost:
            for client in clients:
                sweep(self._folder / "clients" / client)  # files that the process was writing
            if len(clients) == 1:
                return [Failure(clients[0], lost.kind, str(lost))]
            return [
                answer
                for client, message in zip(clients, messages, strict=True)
                for answer in self._answers(ask, [client], [message], arrived)
            ]
        return [self._received(client, data, arrived) for client, data in zip(clients, found, strict=True)]

    def _received(self, client: str, data: bytes, arrived: Arrived) -> Answer:
        answer = read_answer(client, data)
        with self._counting:
            self.received += len(data)
        arrived(answer)
        return answer

    def peak_memory(self) -> int:
        """Bytes of resident memory at most, over this process and its workers."""
        return peak_memory() + sum(worker.peak_memory() for worker in self.processes)

    def close(self) -> None:
        """End all processes, and remove the cache."""
        self._close_processes()
        self._remove_cache()

    def _remove_cache(self) -> None:
        shutil.rmtree(self._folder / "cache", ignore_errors=True)

    def _close_processes(self) -> None:
        if self._host:
            self._host.close()
        for worker in self.processes:
            worker.close()


def _next(queue: deque[list[int]]) -> list[int] | None:
    """The next group; None at the end. Threads share the queue."""
    try:
        return queue.popleft()
    except IndexError:
        return None


def check_plugins(config: Config) -> None:
    """Raise ConfigError where the run may have workers that cannot import a part that the config names."""
    if worker_count(config) > 1 or config.federation.deadline_seconds is not None:
        declarations(config)


def worker_count(config: Config, parameters: int = 0) -> int:
    """Worker processes: as configured, else one for each core; never more than there are clients.

    A model of as many `parameters` as `LARGE` has is held by one process, unless the config says otherwise.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = config.device == "cpu" or (config.device == "auto" and resolved("auto") == "cpu")
    wanted = config.engine.workers or (cores if on_cpu and parameters < LARGE else 1)
    return min(wanted, config.partition.clients or wanted)
