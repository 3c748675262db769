"""Runs as processes of their own over real sites on 127.0.0.1: two at once, one that is killed, one with a
site that hangs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedms.config import Config
from fedms.experiments import experiment
from fedms.experiments.before import joining
from fedms.experiments.deployment import Deployment
from fedms.experiments.observers import Silent
from flower.test_engine_without_flwr import without_times
from flower.test_sites_that_fail import failures, results

pytest.importorskip("flwr", reason="needs the extra fedms[flower]: make test-flower")
pytestmark = pytest.mark.distributed
LONGEST = 600.0
"""Seconds that a run may take."""
SHORT = ("federation.rounds_global=1", "federation.rounds_local=1")
FEW = ("gate.objective=likelihood", "mixture.interpolation=1", "head.label_prior=none")
"""With these, nothing is asked but training, one validation and the test."""


def started(config: Config, out: Path, *options: str) -> subprocess.Popen[str]:
    """`fedms run` with this config."""
    file = out.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    return subprocess.Popen(
        [sys.executable, "-m", "fedms.cli", "run", str(file), "--out", str(out), "--quiet", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def result(process: subprocess.Popen[str], out: Path) -> dict[str, Any]:
    """What a run that ends by itself has come to, without costs."""
    try:
        output, _ = process.communicate(timeout=LONGEST)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return results(json.loads((out / "result.json").read_text()))


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LONGEST
    while not what():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)


def test_a_run_that_was_killed_leaves_sites_that_go_on(settings, tmp_path):
    """Its last message stays with a SuperNode, and its content never comes."""
    wanted = results(experiment.run(settings(*SHORT, "engine.workers=1"), tmp_path / "local"))
    deployment = Deployment(settings(*SHORT), tmp_path / "run")
    with deployment.started() as config:
        first, lines = started(config, tmp_path / "run"), tmp_path / "run" / "metrics.jsonl"
        wait_for(lines.exists, first)
        time.sleep(1.0)  # the next exchange is on its way
        first.send_signal(signal.SIGKILL)
        first.communicate()
        found = result(started(config, tmp_path / "run", "--resume"), tmp_path / "run")
    assert found == wanted


def test_a_site_joins_and_a_run_goes_on_over_a_real_superlink(settings, tmp_path):
    first = settings(*SHORT, *FEW, "engine.workers=1")
    experiment.run(first, tmp_path / "local")
    deployment = Deployment(settings(*SHORT, *FEW), tmp_path / "run")
    with deployment.started() as config:
        experiment.run(config, tmp_path / "run")
        late = deployment.place / "data" / "sites" / "late"
        shutil.copytree(late.with_name("client-1"), late)
        deployment.start_site("late")
        joined = experiment.run(joining(tmp_path / "run", "late", None), tmp_path / "joined")
        onward = {"start_from": str(tmp_path / "run")}
        second = experiment.run(config.model_copy(update=onward), tmp_path / "second")
    here = experiment.run(joining(tmp_path / "run", "late", str(late)), tmp_path / "joined-here")
    assert without_times(joined) == without_times(here)
    local = first.model_copy(update={"start_from": str(tmp_path / "local")})
    assert without_times(second) == without_times(experiment.run(local, tmp_path / "second-here"))


def test_a_site_that_hangs_is_too_late_and_tested_when_it_is_back(settings, tmp_path):
    deployment = Deployment(settings(*SHORT), tmp_path / "run")
    hung: list[int] = []

    class Hang(Silent):
        """Has client-1's process hang after the first stage, until its answer is missing."""

        def round_done(self, record):
            pid = deployment.children["client-1"].process.pid
            if record["stage"] == "global" and not hung:
                hung.append(pid)
                os.kill(pid, signal.SIGSTOP)
            elif hung and record["failures"]:
                os.kill(pid, signal.SIGCONT)

    with deployment.started() as config:
        values = config.model_dump()
        values["federation"] |= {"deadline_seconds": 40.0}
        found = experiment.run(Config.model_validate(values), tmp_path / "run", Hang())
    assert len(found["per_client"]) == 3
    assert ("client-1", "deadline") in failures(tmp_path / "run")
