"""Worker processes that start at once: forked from one process that has imported torch and nothing of fedms.

A new interpreter takes seconds to import torch, for each worker of each test, and that was half of the time
of all tests. From its first line on, a worker does the same either way. That it starts as an interpreter of
its own is tested where a test asks for `plain_spawn`, and by all tests of the command line.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from fedms.engines import process

SUBREAPER = 36
"""Linux's number of the wish to be the parent of grandchildren whose parent has ended."""


class Forked(subprocess.Popen[bytes]):
    """A process that another forked, and that is a child of this process now."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.args, self.pid, self.returncode = ["worker"], pid, None  # type: ignore[assignment]
        self.stdin, self.stdout, self.stderr = stdin, stdout, None
        self._child_created, self._waitpid_lock = True, threading.Lock()
        self._sigint_wait_secs = 0.25


class Nursery:
    """The process from which workers are forked, and this process's end of the line to it."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("nursery.py"), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, said: dict[str, Any], handles: Sequence[int]) -> int:
        """A worker's process number."""
        system = ctypes.CDLL(None)
        system.prctl(SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self.line, [json.dumps(said).encode()], handles)
            return int(self.line.recv(100))
        finally:
            system.prctl(SUBREAPER, 0, 0, 0, 0)


plain_spawn = process._spawn
"""As workers are started outside the tests."""
_nursery: Nursery | None = None
_asking = threading.Lock()


def spawn(places: list[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """In place of `fedms.engines.process._spawn`."""
    global _nursery
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes = [os.pipe() for _ in range(3)]
    (stdin, to_it), (from_it, stdout), (lifeline, ours) = pipes
    with _asking:
        _nursery = _nursery or Nursery()
        said = {"worker": str(process.WORKER), "places": places, "environment": environment}
        pid = _nursery.fork(said, [stdin, stdout, 2, lifeline])
    for handle in (stdin, stdout, lifeline):
        os.close(handle)
    return Forked(pid, os.fdopen(to_it, "wb"), os.fdopen(from_it, "rb")), os.fdopen(ours, "wb")


def standing() -> set[str]:
    """Numbers of the processes that stay for all tests."""
    return set() if _nursery is None else {str(_nursery.pid)}
