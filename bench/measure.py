"""A command as a whole process: wall time, and processor time and memory of it and all that it starts. Linux."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedms.core.errors import FedmsError

INTERVAL = 0.25
"""Seconds between looks at the memory."""
LAST_WORDS = 2000
"""Characters of a failed command's output that are shown."""

TICKS = os.sysconf("SC_CLK_TCK")

Process = tuple[int, int]
"""A process's number, and when it began: numbers are used again."""


@dataclass(frozen=True)
class Measured:
    """What a command took."""

    seconds: float
    processor_seconds: float
    """Of all its processes; what other programs do hardly changes it, as it does wall time"""
    peak_bytes: int
    """Resident memory over all its processes at once, pages that several share counted once (PSS)"""
    output: str
    """What it printed to standard output"""
    load_before: float
    """The machine's load (mean of the last minute) when it began"""


def measured(
    command: Sequence[str | Path], timeout: float, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run the command to its end; whatever it leaves running is ended, too.

    Raises:
        FedmsError: it failed, or took longer than `timeout` seconds.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        peak, used, family, load = 0, dict[Process, int](), set[Process](), os.getloadavg()[0]
        began = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), stdout=out, stderr=err, env=environment, process_group=0
        )
        before = signal.signal(signal.SIGTERM, _leave)
        try:
            while True:
                ticks = _family(process.pid, family)
                family, used = set(ticks), used | ticks
                peak = max(peak, sum(_memory(pid) for pid, _ in family))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(INTERVAL)
                    break
                if time.perf_counter() - began > timeout:
                    raise FedmsError(f"{_words(command)}: not done after {timeout:.0f} seconds")
            seconds = time.perf_counter() - began
        finally:
            signal.signal(signal.SIGTERM, before)
            _end(family)
            process.kill()  # where it was not looked at yet; nothing where it has ended
            process.wait()
        for stream in (out, err):
            stream.seek(0)
        output = out.read()
        if code:
            raise FedmsError(
                f"{_words(command)}: ended with code {code}:\n{(output + err.read())[-LAST_WORDS:]}"
            )
    return Measured(seconds, sum(used.values()) / TICKS, peak, output, load)


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)  # by way of `finally`


def _words(command: Sequence[str | Path]) -> str:
    return " ".join(map(str, command))


def _family(first: int, known: set[Process]) -> dict[Process, int]:
    """Ticks used so far by the process, its descendants, and those known before that still live: who loses its parent is adopted."""
    parents: dict[Process, int] = {}
    ticks: dict[Process, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                process = int(entry.name), int(fields[19])
                parents[process], ticks[process] = int(fields[1]), int(fields[11]) + int(fields[12])
    found = {each for each in parents if each in known or each[0] == first}
    while True:
        numbers = {pid for pid, _ in found}
        more = {each for each, parent in parents.items() if parent in numbers} - found
        if not more:
            return {each: ticks[each] for each in found}
        found |= more


def _memory(pid: int) -> int:
    """Bytes in memory, shared pages in equal parts; 0 where the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _end(family: set[Process]) -> None:
    for pid, _ in _family(-1, family):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
