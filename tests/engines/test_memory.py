"""Freed memory is kept, so that a training step does not touch new pages again and again."""

import os
import platform
import subprocess
import sys

import pytest

from fedms.engines.memory import keeping_freed_memory

FAULTS = """
import resource, sys
import torch
from fedms.engines.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():  # more than the C library keeps by itself, freed from the top of the heap
    return [torch.ones(3 * 2**20) for _ in range(12)]
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_no_new_pages_are_touched_where_freed_memory_is_kept():
    def faults(how: str) -> int:
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
        }
        return int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )

    assert faults("kept") * 10 < faults("not kept")


def test_what_the_user_has_set_stands():
    assert keeping_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.check=3"}) == {
        "GLIBC_TUNABLES": "glibc.malloc.check=3"
    }
    made = keeping_freed_memory({"HOME": "/"})
    assert made["HOME"] == "/" and "glibc.malloc.trim_threshold=" in made["GLIBC_TUNABLES"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_process_starts_with_these_settings():
    done = subprocess.run(
        [sys.executable, "-c", "print('well')"],
        env=keeping_freed_memory(os.environ),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == (
        "well\n",
        "",
    )  # glibc would complain of a name that it does not know
