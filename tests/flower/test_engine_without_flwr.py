"""The engine and the sites without flwr: a post in this process carries the bytes."""

from __future__ import annotations

import json

import pytest

from fedms.core.files import read_arrays
from fedms.experiments.experiment import run
from fedms.model.kernels import has_onednn

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


@pytest.mark.skipif(not has_onednn(), reason="needs a PyTorch with oneDNN")
def test_sites_take_the_servers_kernel(fleet, tmp_path):
    made = fleet("engine.kernels=onednn", "federation.rounds_global=1")
    made.all_come()
    run(made.config, tmp_path / "server")
    said = [*(made.folder / "sites").glob("*/runs/*/environment.json")]
    assert [json.loads(path.read_text())["kernels"] for path in said] == ["onednn"] * 3
