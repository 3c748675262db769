"""A process's memory: what is freed stays with it, and how much it had at most.

A training step allocates and frees the same megabytes over and over. The C library gives large blocks back to the system each time and gets
them again as new pages, whose first touch costs about a tenth of a training step (docs/performance.md). On glibc that is a setting;
elsewhere nothing happens here.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

TRIM, MMAP = -1, -3
"""mallopt's names: what may lie free at the heap's end, and from what size on a block is a mapping of its own."""
NEVER = 2**30
TUNABLES = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_threshold": NEVER,
    "glibc.malloc.trim_threshold": 8 * NEVER,
}
"""The same for a process to be started, which can also have large pages."""


def keep_freed_memory() -> None:
    """For this process, from now on."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(MMAP, NEVER)
        library.mallopt(TRIM, 2 * NEVER - 1)


def keeping_freed_memory(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process to be started; what the user has set of it stands."""
    ours = ":".join(f"{name}={value}" for name, value in TUNABLES.items())
    return {"GLIBC_TUNABLES": ours, **environment}


def peak_memory() -> int:
    """Bytes of resident memory that this process has had at most."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def forget_peak() -> None:
    """Count this process's peak memory from now on, where the system can: one run after another would report the largest of all."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
