"""A worker process from the engine's side: asked over its standard input, killed where its answer is late."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO

from fedms.config import Config
from fedms.core.errors import FedmsError, StorageError
from fedms.engines.imports import describe_imports
from fedms.engines.memory import keeping_freed_memory
from fedms.engines.pipe import STORAGE, USAGE, read_message, write_message
from fedms.federation.identity import DataIdentity
from fedms.federation.messages import FailureKind
from fedms.federation.registration import declarations
from fedms.model.kernels import Kernel
from fedms.training.prefix_store import remove_unfinished

WORKER = Path(__file__).with_name("worker.py")
PATIENCE = 10
"""Seconds that a process has to end by itself before it is killed."""


class LostError(Exception):
    """A worker process ended before its client answered. The text is the reason, in one line."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class WorkerProcess:
    """A worker process and, where it ends early, its successors.

    A process says that it is ready by an empty message. An end before that is not a client's failure.

    Attributes:
        process: the present process.
        busy: whether a message is being answered.
    """

    def __init__(
        self,
        config: Config,
        data: DataIdentity,
        folder: Path,
        number: int,
        workers: int,
        prefixes: Path | None,
        kernel: Kernel = "torch",
    ) -> None:
        self._config = config.to_yaml().encode()
        declared = {**declarations(config), "data": asdict(data), "kernel": kernel}
        self._declarations = json.dumps(declared).encode()
        self._cache = folder / "cache" / str(number)
        self._prefixes = prefixes
        self._places = [str(each) for each in (folder, number, workers, prefixes) if each is not None]
        self._closing = threading.Lock()
        self._closed = False
        self._start()

    def _start(self) -> None:
        with self._closing:
            if self._closed:
                raise FedmsError("the workers have been closed")
            self.process, self._lifeline = _spawn(self._places)
            assert self.process.stdin and self.process.stdout
            self._in, self._out = self.process.stdin, self.process.stdout
        self._ready = self.busy = False
        with contextlib.suppress(OSError):  # an early end is noticed when the process is asked
            self._in.write(describe_imports().encode() + b"\n")
            write_message(self._in, self._config)
            write_message(self._in, self._declarations)

    def _be_ready(self) -> None:
        if self._ready and self.process.poll() is not None:
            self._clean_up()
            self._start()
        if not self._ready and read_message(self._out) is None:
            self._end()
            raise FedmsError(f"a worker process {self._ending()} as it started; its last words are above")
        self._ready = True

    def ask(self, message: bytes, seconds: float | None = None) -> bytes:
        """The answer, within this time.

        Raises:
            LostError: the process ended, or was killed after this time. The next message starts another.
            StorageError: this machine's disk failed.
            FedmsError: no process can be started.
        """
        self._be_ready()
        over, answer = threading.Event(), None

        def end() -> None:
            over.set()
            self.process.kill()

        timer = threading.Timer(seconds or 0, end)
        timer.daemon = True
        if seconds is not None:
            timer.start()
        self.busy = True
        try:
            write_message(self._in, message)
            answer = read_message(self._out)
        except (OSError, ValueError):  # a dead worker, or a pipe closed under an interrupted run
            pass
        finally:
            timer.cancel()
        self.busy = False
        if seconds is not None:
            timer.join()  # from here on it is certain whether the time was over
        if answer is not None and not over.is_set():
            if answer.startswith(STORAGE):
                raise StorageError(answer[len(STORAGE) :].decode())
            return answer
        self._end()
        if over.is_set():
            raise LostError("deadline", f"no answer within {seconds:g} s")
        raise LostError("died", f"its process {self._ending()}")

    def peak_memory(self) -> int:
        """Bytes of resident memory at most; 0 if the process has ended."""
        try:
            return 0 if self.process.poll() is not None else int(self.ask(USAGE))
        except LostError:
            return 0

    def close(self) -> None:
        """End the process: by the end of its input, or by a kill while it is busy or does not listen."""
        with self._closing:
            self._closed = True
        if self.busy:
            self.process.kill()
        with contextlib.suppress(OSError):
            self._in.close()
        self._end()
        self._out.close()
        self._lifeline.close()

    def _end(self) -> None:
        """Wait for the process to end; kill it if it does not."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _clean_up(self) -> None:
        """Close the pipes of an ended process, and remove its cache and its unfinished prefixes."""
        with contextlib.suppress(OSError):
            self._in.close()  # its buffer may hold bytes that were not read any more
        self._out.close()
        self._lifeline.close()
        shutil.rmtree(self._cache, ignore_errors=True)
        if self._prefixes is not None:
            remove_unfinished(self._prefixes, self.process.pid)

    def _ending(self) -> str:
        """How the process ended."""
        code, names = self.process.returncode, {each.value: each.name for each in signal.Signals}
        return (
            f"was ended by {names.get(-code, f'signal {-code}')}" if code < 0 else f"ended with code {code}"
        )


def _spawn(places: list[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A new worker process, and this process's end of the pipe that ends it (`worker.end_with_parent`).

    With `-P`, Python puts no folder of its own first on the import path.
    """
    environment = {
        **keeping_freed_memory(os.environ),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(theirs), *places],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            pass_fds=(theirs,) if os.name == "posix" else (),
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, os.fdopen(ours, "wb")
