"""What a finished run keeps: enough to predict, evaluate, explain, export, start from and join; no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.core.errors import FedmsError
from fedms.core.files import read_arrays
from fedms.experiments import ending, experiment
from fedms.federation.client import left_by
from fedms.runs import cleaning
from fedms.runs.export.export import export_client
from fedms.runs.predict import clients_of, load
from tiny_run import finished, run_config, write_texts  # noqa: F401

TEXTS = ["turn the light on", "play music please"]


@pytest.fixture(scope="session")
def whole(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of which nothing was removed."""
    place = tmp_path_factory.mktemp("whole")
    write_texts(place / "texts.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ending, "prune", lambda folder: 0)
        config = run_config(checkpoint("bert"), place / "texts.csv", federation__rounds_local=2)
        experiment.run(config, place / "run")
    return place / "run"


@pytest.fixture
def cleaned(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, cleaned as a large run is."""
    monkeypatch.setattr(cleaning, "WORTH", 0)
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    result = CliRunner().invoke(app, ["clean", str(run)])
    assert result.exit_code == 0 and result.stdout.endswith("freed in 1 run\n")
    assert size(run) < size(whole) * 0.6
    return run


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_removes_at_its_end_what_only_a_resumption_needs(finished):  # noqa: F811
    run = finished()
    assert not [*run.glob("server/state-*"), *run.rglob("received-*")]
    assert {path.name for path in run.glob("server/*")} == {
        "after-global.safetensors",
        "after-local.safetensors",
        "lines.jsonl",
    }
    for client in clients_of(run):
        assert [path.name for path in (run / "clients" / client).glob("state-*")] == ["state-1-1.safetensors"]


def test_a_cleaned_run_predicts_explains_evaluates_and_exports_as_before(whole, cleaned, tmp_path):
    for name in clients_of(whole):
        before, after = load(whole, name), load(cleaned, name)
        assert before.personal.arrays.keys() == after.personal.arrays.keys()
        for key, array in before.personal.arrays.items():
            assert cleaning.same(array, after.personal.arrays[key]), key
        assert after.predict(TEXTS) == before.predict(TEXTS)
        assert str(after.explain(TEXTS)) == str(before.explain(TEXTS))
        labels = ["lights_on", "music"]
        assert after.evaluate(TEXTS, labels) == before.evaluate(TEXTS, labels)
    export_client(before, tmp_path / "one")
    export_client(after, tmp_path / "other")
    for path in (tmp_path / "one").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes()
    assert CliRunner().invoke(app, ["report", str(cleaned)]).exit_code == 0


def test_another_run_can_start_from_a_cleaned_one_with_all_that_its_clients_kept(whole, cleaned):
    for name in clients_of(whole):
        (before, when), (after, then) = (left_by(run / "clients" / name) for run in (whole, cleaned))
        assert when == then and before.keys() == after.keys() and before
        assert all(torch.equal(array, after[key]) for key, array in before.items())
    for path in whole.glob("server/after-*"):
        assert path.read_bytes() == (cleaned / "server" / path.name).read_bytes()


def test_a_run_goes_on_from_a_cleaned_one_and_a_client_joins_it(cleaned, tmp_path):
    config = experiment.RunFolder(cleaned).config()
    values = config.model_dump() | {"start_from": str(cleaned)}
    second = experiment.run(experiment.Config.model_validate(values), tmp_path / "second")
    assert second["clients"] == 3
    arguments = ["join", str(cleaned), "--name", "late", "--data", config.data.source]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "late"), "--quiet"])
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "late", "late").predict(TEXTS)


def test_cleaning_that_was_cut_off_is_ended_by_the_next(whole, tmp_path, monkeypatch):
    run, writes = Path(shutil.copytree(whole, tmp_path / "run")), []
    monkeypatch.setattr(cleaning, "WORTH", 0)

    def write(path, *content):
        writes.append(path)
        if len(writes) == 3:
            raise OSError("the power is gone")
        return written(path, *content)

    written = cleaning.write_arrays
    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "write_arrays", write)
        with pytest.raises(OSError, match="power"):
            cleaning.clean_run(run)
    names = clients_of(whole)
    wanted = {name: load(whole, name).predict(TEXTS) for name in names}
    assert {name: load(run, name).predict(TEXTS) for name in names} == wanted
    cleaning.clean_run(run)
    assert {name: load(run, name).predict(TEXTS) for name in names} == wanted
    assert all("common" in read_arrays(run / "clients" / name / "model.safetensors")[1] for name in names)
    assert cleaning.clean_run(run) == 0


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"torn")])
def test_what_all_hold_alike_must_be_whole(cleaned, damage):
    damage(cleaned / "server" / "common.safetensors")
    with pytest.raises(FedmsError, match=r"common\.safetensors: (there is no such file|damaged)"):
        load(cleaned, "client-0")


def test_little_is_not_worth_a_file_of_its_own(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    cleaning.clean_run(run)
    assert not (run / "server" / "common.safetensors").exists()
    name = clients_of(run)[0]
    model = f"clients/{name}/model.safetensors"
    assert (run / model).read_bytes() == (whole / model).read_bytes()


def test_models_of_another_run_are_not_mixed_in(whole, cleaned):
    """The common file of one run does not fit the models of another that lacks other arrays."""
    arrays, _ = read_arrays(cleaned / "server" / "common.safetensors")
    arrays.pop("global/head.weight")
    cleaning.write_arrays(cleaned / "server" / "common.safetensors", arrays, {})
    with pytest.raises(FedmsError, match="damaged: it does not hold what"):
        load(cleaned, "client-0")
