"""The engine and the sites without flwr: a post in this process carries the bytes."""

from __future__ import annotations

import json

import pytest

from fedms.config import load_config
from fedms.core.files import read_arrays
from fedms.engines.flower import opening
from fedms.engines.flower.engine import FlowerEngine
from fedms.engines.local import LocalEngine
from fedms.experiments.experiment import run
from fedms.experiments.observers import Silent
from fedms.experiments.rounds import Rounds
from fedms.model.kernels import has_onednn
from fedms.runs.folder import RunFolder
from flower.conftest import Fleet, LocalPost
from tiny_run import finished  # noqa: F401

TIMES = ("seconds", "evaluation_seconds", "peak_memory_bytes")


def same_files(one, other) -> int:
    """How many files of clients are equal, array by array.

    A finished run has two of each client: its model and its newest state.
    """
    files = sorted(path.relative_to(one) for path in one.glob("*/*.safetensors"))
    for each in files:
        mine, theirs = (read_arrays(folder / each)[0] for folder in (one, other))
        assert mine.keys() == theirs.keys(), each
        assert all(mine[name].equal(theirs[name]) for name in mine), each
    return len(files)


def without_times(result):
    return {key: value for key, value in result.items() if key not in TIMES}


def gathered(fleet, to):
    """All sites' clients in one folder."""
    for site in (fleet.folder / "sites").glob("*/runs/*/clients/*"):
        to.mkdir(exist_ok=True)
        (to / site.name).symlink_to(site)
    return to


def test_sites_with_their_own_rows_come_to_the_same_bits(fleet, tmp_path):
    made = fleet("engine.workers=1")
    wanted = run(made.local, tmp_path / "local")
    made.all_come()
    found = run(made.config, tmp_path / "server")
    assert without_times(found) == without_times(wanted)
    assert same_files(tmp_path / "local" / "clients", gathered(made, tmp_path / "gathered")) >= 6
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("local", "server")]
    for one, other in zip(*lines, strict=True):
        assert without_times(json.loads(one)) == without_times(json.loads(other))


def test_sites_with_pictures_and_validation_figures(finished, tmp_path, monkeypatch):  # noqa: F811
    values = RunFolder(finished("vit")).config().model_dump()
    post = LocalPost()
    monkeypatch.setattr(opening, "open_post", lambda config: post)
    made = Fleet(load_config(values, ["evaluation.validation=true"]), tmp_path / "fleet", post)
    wanted = run(made.local, tmp_path / "local")
    made.all_come()
    found = run(made.config, tmp_path / "server")
    here, there = wanted.pop("validation"), found.pop("validation")
    for judged in (wanted, found):  # everyone's validation samples are at no site, so they cost nothing there
        del judged["evaluation_flops"], judged["evaluation_bytes"]
    assert without_times(found) == without_times(wanted)
    assert there["accuracy_global"] is None and here["accuracy_global"] is not None
    assert all(there[key] == here[key] for key in ("accuracy_local", "accuracy_local_worst"))


@pytest.fixture
def exchanges(monkeypatch):
    """What was asked, one kind an exchange, on whichever engine."""
    kinds = []
    for engine in (LocalEngine, FlowerEngine):

        def counted(self, tasks, *rest, carry=engine.run):
            kinds.append(tasks[0].kind)
            return carry(self, tasks, *rest)

        monkeypatch.setattr(engine, "run", counted)
    return kinds


def scores(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["round"], line["train_loss"], line["validation_score"]) for line in lines]


def test_validation_travels_with_the_next_training(fleet, tmp_path, exchanges, monkeypatch):
    made = fleet("engine.workers=1", "activation.rule=fixed", "federation.rounds_global=3")
    here = run(made.local, tmp_path / "local")
    asked = exchanges.copy()
    exchanges.clear()
    made.all_come()
    there = run(made.config, tmp_path / "server")
    assert without_times(there) == without_times(here) and exchanges == asked
    assert asked[:4] == ["train", "train", "train", "evaluate"]
    exchanges.clear()
    monkeypatch.setattr(Rounds, "can_validate_later", lambda *_: False)
    apart = run(made.local, tmp_path / "apart")
    assert len(exchanges) == len(asked) + 2
    assert scores(tmp_path / "apart") == scores(tmp_path / "local") == scores(tmp_path / "server")
    differ = {key for key in apart if apart[key] != here[key]} - {*TIMES}
    assert differ <= {"uplink_bytes", "downlink_bytes", "evaluation_bytes"}
    assert here["evaluation_bytes"] < apart["evaluation_bytes"]


def test_a_score_that_is_not_there_yet_comes_after_a_resumption(settings, tmp_path):
    config = settings("engine.workers=1", "activation.rule=fixed", "federation.rounds_global=3")
    wanted = run(config, tmp_path / "whole")

    class Stop(Silent):
        """Ends the run as the second round from now begins."""

        begun = 0

        def progress(self, what, done, total):
            self.begun += what == "train" and not done
            if self.begun == 2:
                raise KeyboardInterrupt

    for lines in (0, 1):  # of rounds whose score is known
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "stopped", Stop(), resume=True)
        assert [stage for stage, *_ in scores(tmp_path / "stopped")].count("global") == lines
    assert without_times(run(config, tmp_path / "stopped", resume=True)) == without_times(wanted)
    assert scores(tmp_path / "stopped") == scores(tmp_path / "whole")


@pytest.mark.skipif(not has_onednn(), reason="needs a PyTorch with oneDNN")
def test_sites_take_the_servers_kernel(fleet, tmp_path):
    made = fleet("engine.kernels=onednn", "federation.rounds_global=1")
    made.all_come()
    run(made.config, tmp_path / "server")
    said = [*(made.folder / "sites").glob("*/runs/*/environment.json")]
    assert [json.loads(path.read_text())["kernels"] for path in said] == ["onednn"] * 3
