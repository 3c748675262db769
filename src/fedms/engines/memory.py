"""A process's memory: freed memory stays with the process, and its peak is known.

A training step allocates and frees the same megabytes over and over. The C library gives large blocks back to
the system each time, and gets them again as new pages. To touch them costs about a tenth of a training step
(docs/performance.md). On glibc a setting avoids that; elsewhere nothing happens here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""mallopt's names: how much may lie free at the heap's end, and from which size on a block is a mapping."""
LARGEST_BLOCK = 2**30
"""Bytes of the largest block that is kept when it is freed."""
TUNABLES = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_threshold": LARGEST_BLOCK,
    "glibc.malloc.trim_threshold": 8 * LARGEST_BLOCK,
}
"""The same for a new process, which can also use large pages."""


def keep_freed_memory() -> None:
    """Keep freed memory in this process, from now on."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        library.mallopt(TRIM_THRESHOLD, 2 * LARGEST_BLOCK - 1)


def keeping_freed_memory(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a new process that keeps freed memory. The user's own setting stands."""
    ours = ":".join(f"{name}={value}" for name, value in TUNABLES.items())
    return {"GLIBC_TUNABLES": ours, **environment}


def peak_memory() -> int:
    """Bytes of resident memory that this process has had at most."""
    if os.name == "nt":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def forget_peak() -> None:
    """Count this process's peak memory from now on, where the system can.

    Otherwise the second of two runs in one process would report the larger peak of both.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
