"""The local engine: clients one after another in this process, or in worker processes of one torch thread each.

Either way a task reaches the client's side as bytes and its update comes back as bytes, and each client's state lies in
its own folder. A client always goes to the same worker, where its cache is.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from fedms.config import Config
from fedms.engines.allocator import keep_freed_memory, keeping_freed_memory
from fedms.errors import FedmsError, StorageError
from fedms.federation.client import ClientHost
from fedms.federation.messages import Task, Update, decode_task, decode_update, encode
from fedms.federation.world import World

USAGE = b"usage"
"""Asks a worker for its peak memory in bytes."""
DISK = "disk"
"""Among the metrics of an update: the client failed because its state could not be written."""


class LocalEngine:
    """Carries tasks to clients on this machine.

    Attributes:
        sent, received: bytes of all tasks and updates so far.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self.sent = 0
        self.received = 0
        self._folder = folder
        self._homes = {name: number for number, name in enumerate(world.clients)}
        self.workers = worker_count(world.config)
        if self.workers == 1:
            keep_freed_memory()
        self._host = ClientHost(world, folder) if self.workers == 1 else None
        self._workers = [] if self._host else [_Worker(world.config, folder, number, self.workers) for number in range(self.workers)]

    def run(self, tasks: Sequence[Task], arrived: Callable[[Update], None] = lambda update: None) -> list[Update]:
        """Have every task done; updates in the order of the tasks. `arrived` is called as each comes in.

        Raises:
            FedmsError: a worker process died, or a client's state could not be written.
        """
        messages = [encode(task) for task in tasks]
        self.sent += sum(len(message) for message in messages)
        answers: list[bytes] = [b""] * len(tasks)
        errors: list[FedmsError] = []

        def serve(worker: _Worker, mine: list[int]) -> None:
            try:
                for index in mine:
                    answers[index] = worker.ask(messages[index])
                    arrived(decode_update(answers[index]))
            except FedmsError as error:
                errors.append(error)

        if self._host:
            for index, message in enumerate(messages):
                answers[index] = handle(self._host, message)
                arrived(decode_update(answers[index]))
        else:
            threads = []
            for number, worker in enumerate(self._workers):
                mine = [index for index, task in enumerate(tasks) if self._homes[task.client] % self.workers == number]
                threads.append(threading.Thread(target=serve, args=(worker, mine), daemon=True))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        self.received += sum(len(answer) for answer in answers)
        updates = [decode_update(answer) for answer in answers]
        for update in updates:
            if update.metrics.get(DISK):  # it is this machine's, and a client without its state would change the result
                raise StorageError(update.failure)
        return updates

    def peak_memory(self) -> int:
        """Bytes of resident memory at most, over this process and its workers."""
        return peak_memory() + sum(int(worker.ask(USAGE)) for worker in self._workers)

    def close(self) -> None:
        if self._host:
            self._host.close()
        for worker in self._workers:
            worker.close()
        shutil.rmtree(self._folder / "cache", ignore_errors=True)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def worker_count(config: Config) -> int:
    """Worker processes: as configured, else one for each core; never more than there are clients."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = config.engine.workers or (1 if config.device == "cuda" else cores)
    return min(wanted, config.partition.clients)


def handle(host: ClientHost, message: bytes) -> bytes:
    """One task's bytes to its update's bytes; a client that fails answers with the reason."""
    task = decode_task(message)
    try:
        return encode(host.handle(task))
    except StorageError as error:
        return encode(Update(task.client, metrics={DISK: True}, failure=str(error)))
    except (Exception, MemoryError) as error:
        if os.environ.get("FEDMS_DEBUG"):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return encode(Update(task.client, failure=f"{type(error).__name__}: {first}"))


def peak_memory() -> int:
    """Bytes of resident memory that this process has had at most."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def forget_peak() -> None:
    """Count this process's peak memory from now on, where the system can: one run after another would report the largest of all."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def read_message(stream: IO[bytes]) -> bytes | None:
    """One length-prefixed message; None at the end."""
    prefix = stream.read(8)
    if len(prefix) < 8:
        return None
    size = int.from_bytes(prefix, "little")
    data = stream.read(size)
    return data if len(data) == size else None


def write_message(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


class _Worker:
    """One worker process, spoken to over its standard input and output."""

    def __init__(self, config: Config, folder: Path, number: int, workers: int) -> None:
        environment = {**keeping_freed_memory(os.environ), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "fedms.engines.worker", str(folder), str(number), str(workers)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True)
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        write_message(self._in, config.to_yaml().encode())

    def ask(self, message: bytes) -> bytes:
        try:
            write_message(self._in, message)
            answer = read_message(self._out)
        except (OSError, ValueError):  # a dead worker, or a pipe closed under an interrupted run
            answer = None
        if answer is None:
            raise FedmsError(f"a worker process ended with code {self._process.wait(10)}; its last words are above")
        return answer

    def close(self) -> None:
        """End of input ends the worker; one that does not listen is killed."""
        try:
            self._in.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._out.close()
