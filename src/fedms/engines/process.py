"""A worker process, as the engine sees it: asked over its standard input, ended where it does not answer in time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.engines.memory import keeping_freed_memory
from fedms.engines.pipe import USAGE, read_message, write_message
from fedms.federation.messages import FailureKind
from fedms.federation.registration import declarations


class LostError(Exception):
    """A worker process ended before its client had answered; why, in one line."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class WorkerProcess:
    """A worker process, spoken to over its standard input and output, and those that follow it where it ends.

    It says that it is there with an empty message: what ends before that is no client's fault.
    """

    def __init__(
        self, config: Config, folder: Path, number: int, workers: int, prefixes: Path | None
    ) -> None:
        self._config = config.to_yaml().encode()
        self._declarations = json.dumps(declarations(config)).encode()
        self._cache = folder / "cache" / str(number)
        places = [str(each) for each in (folder, number, workers, prefixes) if each is not None]
        self._command = [sys.executable, "-m", "fedms.engines.worker", *places]
        self._closing = threading.Lock()
        self._closed = False
        self._start()

    def _start(self) -> None:
        environment = {
            **keeping_freed_memory(os.environ),
            "PYTHONPATH": os.pathsep.join(
                [os.environ.get("PYTHONPATH", ""), *(each for each in sys.path if each)]
            ).strip(os.pathsep),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with self._closing:
            if self._closed:
                raise FedmsError("the workers have been closed")
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True
            )
            assert self._process.stdin and self._process.stdout
            self._in, self._out = self._process.stdin, self._process.stdout
        self._there = self._busy = False
        with contextlib.suppress(OSError):  # one that has ended already is noticed when it is to answer
            write_message(self._in, self._config)
            write_message(self._in, self._declarations)

    def _be_there(self) -> None:
        if self._there and self._process.poll() is not None:
            self._leave()
            self._start()
        if not self._there and read_message(self._out) is None:
            self._end()
            raise FedmsError(f"a worker process {self._ending()} as it started; its last words are above")
        self._there = True

    def ask(self, message: bytes, seconds: float | None = None) -> bytes:
        """The answer, in this time where there is one.

        Raises:
            LostError: the process ended, or was ended when the time was over; the next message goes to another.
            FedmsError: no process can be started.
        """
        self._be_there()
        over, answer = threading.Event(), None

        def end() -> None:
            over.set()
            self._process.kill()

        timer = threading.Timer(seconds or 0, end)
        timer.daemon = True
        if seconds is not None:
            timer.start()
        self._busy = True
        try:
            write_message(self._in, message)
            answer = read_message(self._out)
        except (OSError, ValueError):  # a dead worker, or a pipe closed under an interrupted run
            pass
        finally:
            timer.cancel()
        self._busy = False
        if seconds is not None:
            timer.join()  # from here on it is certain whether the time was over
        if answer is not None and not over.is_set():
            return answer
        self._end()
        if over.is_set():
            raise LostError("deadline", f"no answer within {seconds:g} s")
        raise LostError("died", f"its process {self._ending()}")

    def peak_memory(self) -> int:
        """Bytes of resident memory at most; 0 of one that has ended."""
        try:
            return 0 if self._process.poll() is not None else int(self.ask(USAGE))
        except LostError:
            return 0

    def close(self) -> None:
        """End of input ends the worker; one that is at work on what nobody waits for any more, or does not listen, is killed."""
        with self._closing:
            self._closed = True
        if self._busy:
            self._process.kill()
        with contextlib.suppress(OSError):
            self._in.close()
        self._end()
        self._out.close()

    def _end(self) -> None:
        """Wait for the process to end, and see that it does."""
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _leave(self) -> None:
        """Let go of what an ended process has left."""
        with contextlib.suppress(OSError):
            self._in.close()  # which may hold what it did not read any more
        self._out.close()
        shutil.rmtree(self._cache, ignore_errors=True)

    def _ending(self) -> str:
        """How the process ended."""
        code, names = self._process.returncode, {each.value: each.name for each in signal.Signals}
        return (
            f"was ended by {names.get(-code, f'signal {-code}')}" if code < 0 else f"ended with code {code}"
        )
