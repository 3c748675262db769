"""Run a command and measure its wall time, processor time and memory, children included. Linux only."""

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
SHOWN_OUTPUT = 2000
"""Characters of a failed command's output that the error shows."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

Process = tuple[int, int]
"""Process id and start time: the system uses ids again."""


@dataclass(frozen=True)
class Measured:
    """The cost of a command."""

    seconds: float
    processor_seconds: float
    """Of all its processes. Other programs change it far less than wall time"""
    peak_bytes: int
    """Largest memory of all its processes together; shared pages are counted once (PSS)"""
    output: str
    """Its standard output"""
    load_before: float
    """Load average of the machine over the minute before the start"""


def measured(
    command: Sequence[str | Path], timeout: float, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run the command to its end, and kill any process that it leaves behind.

    Raises:
        FedmsError: The command failed, or took longer than `timeout` seconds.
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
                peak = max(peak, sum(memory_of(pid) for pid, _ in family))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(INTERVAL)
                    break
                if time.perf_counter() - began > timeout:
                    raise FedmsError(f"{_command_line(command)}: not done after {timeout:.0f} seconds")
            seconds = time.perf_counter() - began
        finally:
            signal.signal(signal.SIGTERM, before)
            _end(family)
            process.kill()  # in case it was never listed; no effect after its end
            process.wait()
        for stream in (out, err):
            stream.seek(0)
        output = out.read()
        if code:
            raise FedmsError(
                f"{_command_line(command)}: ended with code {code}:\n{(output + err.read())[-SHOWN_OUTPUT:]}"
            )
    return Measured(seconds, sum(used.values()) / TICKS_PER_SECOND, peak, output, load)


def memory_of_family(pid: int) -> int:
    """Bytes in memory of a process and its descendants now; shared pages are counted once (PSS)."""
    return sum(memory_of(each) for each, _ in _family(pid, set()))


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)  # raises SystemExit, so `finally` kills the processes


def _command_line(command: Sequence[str | Path]) -> str:
    return " ".join(map(str, command))


def _family(first: int, known: set[Process]) -> dict[Process, int]:
    """Ticks used so far by process `first`, its descendants, and known processes that still live.

    Known processes stay in the family even when they have lost their parent.
    """
    parents: dict[Process, int] = {}
    ticks: dict[Process, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended meanwhile
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


def memory_of(pid: int) -> int:
    """Bytes in memory, shared pages divided equally; 0 if the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _end(family: set[Process]) -> None:
    for pid, _ in _family(-1, family):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
