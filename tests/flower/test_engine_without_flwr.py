"""The engine and the sites without flwr: a post in this process carries the bytes."""

from __future__ import annotations

import json

import pytest

from fedms.config import load_config
from fedms.core.files import read_arrays
from fedms.engines.flower import opening
from fedms.experiments.experiment import run
from fedms.model.kernels import has_onednn
from fedms.runs.folder import RunFolder
from flower.conftest import Fleet, LocalPost
from tiny_run import finished  # noqa: F401

TIMES = ("seconds", "evaluation_seconds", "peak_memory_bytes")


def same_files(one, other) -> int:
    """How many files of clients are equal, array by array."""
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
    assert same_files(tmp_path / "local" / "clients", gathered(made, tmp_path / "gathered")) >= 9
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


@pytest.mark.skipif(not has_onednn(), reason="needs a PyTorch with oneDNN")
def test_sites_take_the_servers_kernel(fleet, tmp_path):
    made = fleet("engine.kernels=onednn", "federation.rounds_global=1")
    made.all_come()
    run(made.config, tmp_path / "server")
    said = [*(made.folder / "sites").glob("*/runs/*/environment.json")]
    assert [json.loads(path.read_text())["kernels"] for path in said] == ["onednn"] * 3
