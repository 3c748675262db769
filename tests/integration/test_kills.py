"""Real processes, really killed.

FEDMS_KILLS says how many (default: 40); `-m "not kills"` leaves them out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import outcome

from fedms.experiments import experiment

pytestmark = [pytest.mark.integration, pytest.mark.kills]

KILLS = int(os.environ.get("FEDMS_KILLS", "40"))
SEED = int(os.environ.get("FEDMS_KILLS_SEED", "0"))


def test_runs_that_are_killed_again_and_again_come_to_the_same(tiny, tmp_path):
    (tmp_path / "tiny.yaml").write_text(tiny().to_yaml())
    script = Path(__file__).with_name("killing.py")
    command = [sys.executable, str(script), str(tmp_path / "tiny.yaml"), str(tmp_path), str(KILLS), str(SEED)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert sum(told["killed"].values()) >= KILLS and told["runs"] >= 1
    print(told)


def until(holds: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_run_with_workers_is_ended_and_gone_on_with(tiny, finished, tmp_path, number):
    """Workers end with their run: none may write into the folder when it is gone on with."""
    config, out = tiny("engine.workers=2"), tmp_path / "run"
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    command = [
        sys.executable,
        "-m",
        "fedms.cli",
        "run",
        str(tmp_path / "tiny.yaml"),
        "--out",
        str(out),
        "--quiet",
    ]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"
    until(lambda: run.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") >= 2))
    assert run.poll() is None, run.communicate()
    workers = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    run.send_signal(number)
    _, said = run.communicate()
    assert len(workers) == 2
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 20)
    if number != signal.SIGKILL:
        assert run.returncode == 130
        assert (
            said.splitlines()[-1]
            == f"interrupted; go on with: fedms run {tmp_path}/tiny.yaml --out {out} --resume"
        )
    else:
        assert run.returncode == -signal.SIGKILL
    assert not (out / "result.json").exists()
    experiment.run(tiny(), out, resume=True)  # in one process: workers do not change what it comes to
    found, wanted = outcome(out), outcome(finished().folder)
    assert {**found, "config": ""} == {**wanted, "config": ""}
