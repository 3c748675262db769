"""Kills real processes: CONFIG FOLDER KILLS SEED.

A parent that has loaded everything, and computed nothing, forks a process for each try at a run and has it
end by SIGKILL: by turns at a random moment, and at a random one of its writes. Each run is gone on with until
it is finished, and must be what an undisturbed one is.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from faults import Watched
from outcomes import outcome

from fedms.config import Config, load_config
from fedms.core import files
from fedms.experiments import experiment


def fork(config: Config, folder: Path, writes: float) -> int:
    """A process that goes on with the run, and kills itself after so many writes."""
    if pid := os.fork():
        return pid
    done = []

    def count(name: str, path: Path, arguments: tuple[Any, ...]) -> None:
        done.append(name)
        if len(done) > writes:
            os.kill(os.getpid(), signal.SIGKILL)

    files.os = Watched(count)  # type: ignore[assignment, attr-defined]
    code = 1
    try:
        experiment.run(config, folder, resume=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """How the process ended by itself in this time; None where it did not."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def main() -> None:
    config, place, wanted, draw = (
        load_config(Path(sys.argv[1])),
        Path(sys.argv[2]),
        int(sys.argv[3]),
        random.Random(int(sys.argv[4])),
    )
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # a killed process loses nothing that the system has taken
    world = experiment.open_world(config)
    experiment.open_world = lambda config: world
    began = time.monotonic()
    assert ended(fork(config, place / "whole", math.inf), 600) == 0
    duration = time.monotonic() - began
    undisturbed = outcome(place / "whole")
    killed = {"at a moment": 0, "at a write": 0}
    runs = 0
    while sum(killed.values()) < wanted:
        folder = place / str(runs)
        code = None
        while code != 0:
            enough = sum(killed.values()) >= wanted
            by_write = draw.random() < 0.5
            writes = draw.randint(1, 80) if by_write and not enough else math.inf
            pid = fork(config, folder, writes)
            code = ended(pid, 600 if by_write or enough else draw.uniform(0, 0.6) * duration)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                killed["at a moment"] += code == -signal.SIGKILL
            else:
                killed["at a write"] += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), code
        assert outcome(folder) == undisturbed, f"run {runs} came to something else"
        shutil.rmtree(folder)
        runs += 1
    print(json.dumps({"killed": killed, "runs": runs}))


if __name__ == "__main__":
    main()
