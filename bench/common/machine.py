"""The machine of a measurement: a figure means little without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

LOAD_AT_START = os.getloadavg()[0]
"""Load average over the minute before the script began"""


def cpu_name() -> str:
    """The CPU's model as Linux names it, with family and model number; the architecture on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    named = facts.get("model name", platform.machine())
    return f"{named} (family {facts.get('cpu family')}, model {facts.get('model')})"


def with_machine(table: str) -> str:
    """The table, and under it the CPU and the load of the machine as the script began and now."""
    load = f"load {LOAD_AT_START:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    return f"{table}\n\n{cpu_name()}, {os.cpu_count()} cores, {load}."
