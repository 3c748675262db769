"""Faults of a real federation on 127.0.0.1: processes are killed by their ids, and every wait has an end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedms.core.errors import FedmsError
from fedms.experiments import experiment
from fedms.experiments.deployment import Deployment
from fedms.experiments.observers import Silent
from flower.test_engine_without_flwr import same_files, without_times
from flower.test_sites_that_fail import failures, results

pytest.importorskip("flwr", reason="needs the extra fedms[flower]: make test-flower")
pytestmark = pytest.mark.distributed
LONGEST = 900
"""Seconds after which a federation that does not come to an end is stopped."""
SHORT = ("federation.rounds_global=3", "federation.rounds_local=1", "federation.quorum=3")
"""The first global round is reported with its score, after the second. The next thing asked is training,
where no answer may be missing."""


class After(Silent):
    """Does something when the stage of a line has been reported."""

    def __init__(self, stage, do):
        self._stage, self._do = stage, do

    def round_done(self, record):
        if record["stage"] == self._stage and self._do is not None:
            do, self._do = self._do, None
            do()


@contextlib.contextmanager
def bounded(deployment):
    """Stop all processes of a federation that takes too long; its run then fails, and with it the test."""
    timer = threading.Timer(LONGEST, deployment.stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def children_of(pid: int) -> list[int]:
    """The ids of the processes that this process started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


@pytest.fixture
def wanted(settings, tmp_path):
    """The result of the local engine, and its folder."""
    return results(experiment.run(settings("engine.workers=1", *SHORT), tmp_path / "local"))


def test_a_deployment_comes_to_the_same_bits_and_leaves_no_process(settings, tmp_path):
    local = experiment.run(settings("engine.workers=1", *SHORT), tmp_path / "local")
    deployment = Deployment(settings(*SHORT), tmp_path / "run")
    pids = []
    with bounded(deployment), deployment.started() as config:
        pids += [child.process.pid for child in deployment.children.values()]
        found = experiment.run(config, tmp_path / "run")
        pids += [each for pid in pids for each in children_of(pid)]
    assert without_times(found) == without_times(local)
    gathered = tmp_path / "gathered"
    gathered.mkdir()
    for client in deployment.place.glob("folders/*/runs/*/clients/*"):
        (gathered / client.name).symlink_to(client)
    assert same_files(tmp_path / "local" / "clients", gathered) >= 6
    assert len(pids) >= 7 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_supernode_that_is_killed_loses_its_task_alone(settings, tmp_path, wanted):
    deployment = Deployment(settings(*SHORT), tmp_path / "run")

    def kill():
        (node,) = children_of(deployment.children["client-1"].process.pid)
        killed(node)

    with bounded(deployment), deployment.started() as config:
        found = experiment.run(config, tmp_path / "run", After("global", kill))
    assert results(found) == wanted
    assert {("client-1", "died")} == {*failures(tmp_path / "run")}


def test_a_site_that_is_killed_and_started_again(settings, tmp_path, wanted):
    deployment = Deployment(settings(*SHORT), tmp_path / "run")

    def kill():
        site = deployment.children["client-1"]
        killed(site.process.pid)
        site.stop()
        deployment.start_site("client-1")

    with bounded(deployment), deployment.started() as config:
        found = experiment.run(config, tmp_path / "run", After("global", kill))
    assert results(found) == wanted
    assert {("client-1", "died")} >= {*failures(tmp_path / "run")}


def test_a_superlink_that_is_killed_and_a_run_that_is_resumed(settings, tmp_path, wanted):
    deployment = Deployment(settings(*SHORT), tmp_path / "run")

    def kill():
        link = deployment.children["superlink"]
        killed(link.process.pid)
        link.stop()

    with bounded(deployment), deployment.started() as config:
        with pytest.raises(FedmsError, match=r"SuperLink 127\.0\.0\.1:\d+: cannot be reached"):
            experiment.run(config, tmp_path / "run", After("global", kill))
        port = int(deployment.address.rpartition(":")[2])
        deployment.start_superlink(deployment.place / "secret", port)
        found = experiment.run(config, tmp_path / "run", resume=True)
    assert results(found) == wanted


def test_two_runs_at_once_over_the_same_sites(settings, tmp_path, wanted):
    deployment = Deployment(settings(*SHORT), tmp_path / "run")
    with bounded(deployment), deployment.started() as config:
        (tmp_path / "other.yaml").write_text(config.model_copy(update={"seed": 1}).to_yaml())
        command = [sys.executable, "-m", "fedms.cli", "run", str(tmp_path / "other.yaml")]
        log = (tmp_path / "other.log").open("wb")
        other = subprocess.Popen([*command, "--out", str(tmp_path / "other")], stdout=log, stderr=log)
        try:
            found = experiment.run(config, tmp_path / "run")
            assert other.wait(LONGEST) == 0, (tmp_path / "other.log").read_text()
        finally:
            other.kill()
            other.wait()
            log.close()
    assert results(found) == wanted
    second = json.loads((tmp_path / "other" / "result.json").read_text())
    assert second["seed"] == 1 and len(second["per_client"]) == 3
    for site in deployment.place.glob("folders/*"):
        assert len([*site.glob("runs/*/clients/*/model.safetensors")]) == 2


def test_a_site_that_comes_late_is_found(settings, tmp_path, wanted):
    deployment = Deployment(settings(*SHORT), tmp_path / "run")
    with bounded(deployment), deployment.started() as config:
        site = deployment.children.pop("client-1")
        site.stop()
        over = threading.Event()

        def come_late():
            time.sleep(8)
            deployment.start_site("client-1")
            over.wait(LONGEST)  # a process ends with the thread that started it

        threading.Thread(target=come_late, daemon=True).start()
        began = time.monotonic()
        found = experiment.run(config, tmp_path / "run")
        over.set()
    assert results(found) == wanted and time.monotonic() - began > 8
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all({failure["client"] for failure in line["failures"]} <= {"client-1"} for line in lines)
