"""A whole run whose clients are files: named as they are, resumable, and unlike a run on changed files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import fedms
from fedms.config.schema import changed
from fedms.core.errors import FedmsError
from fedms.experiments import experiment
from fedms.experiments.description import write_partition
from fedms.runs.reading.run import read_run
from tiny_run import finished, run_config, write_texts  # noqa: F401 (a fixture)

RULE = {"partition": {"rule": "files"}}


MEASURED = ("seconds", "evaluation_seconds", "peak_memory_bytes")


@pytest.mark.parametrize(("family", "workers"), [("bert", 1), ("bert", 2), ("vit", 1)])
def test_written_files_give_the_same_result_to_the_last_bit(
    family: str,
    workers: int,
    finished: Callable[..., Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    run = finished(family, evaluation__everyone=10)
    before = fedms.load_config(run / "config.yaml")
    write_partition(before, tmp_path / "written")
    [public] = (tmp_path / "written").glob("public.*")
    keys = {
        "data.source": str(tmp_path / "written" / "sites"),
        "data.classes": tuple(json.loads((tmp_path / "written" / "classes.json").read_text())),
        "partition.rule": "files",
        "partition.clients": None,
        "evaluation.everyone": None,
        "evaluation.public": str(public),
        "engine.workers": workers,
    }
    result = experiment.run(changed(before, keys), tmp_path / "run")
    first = read_run(run).result
    for key in MEASURED:
        del first[key], result[key]
    assert result == first


@pytest.fixture(scope="module")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 40 texts each."""
    folder = tmp_path_factory.mktemp("clinics")
    write_texts(folder / "all.csv")
    header, *lines = (folder / "all.csv").read_text().splitlines()
    (folder / "all.csv").unlink()
    for start, name in enumerate(("north", "mercy", "south")):
        (folder / f"{name}.csv").write_text("\n".join([header, *lines[start::3]]) + "\n")
    return folder


def test_clients_of_files_are_trained_tested_and_asked(
    clinics: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(clinics, tmp_path / "clinics"))
    config = run_config(checkpoint("bert"), source, **RULE, engine__workers=2)
    result = experiment.run(config, tmp_path / "run")
    assert [each["name"] for each in result["per_client"]] == ["mercy", "north", "south"]
    assert result["clients"] == 3
    assert read_run(tmp_path / "run").result == result
    [answer] = fedms.load(tmp_path / "run", "mercy").predict(["play music"])
    assert answer.label in ("lights_off", "lights_on", "music", "volume")
    assert experiment.run(config, tmp_path / "run", resume=True) == result
    # the same samples, and one of them at another client
    north, south = source / "north.csv", source / "south.csv"
    lines = north.read_text().splitlines(keepends=True)
    north.write_text("".join(lines[:-1]))
    south.write_text(south.read_text().replace("text,label\n", "text,label\n" + lines[-1]))
    with pytest.raises(FedmsError, match="changed since then: its samples belong to other clients"):
        experiment.run(config, tmp_path / "run", resume=True)
