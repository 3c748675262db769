"""A run keeps what it was made from: who goes on with other data or another model hears it in one line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fedms
from fedms.core.errors import FedmsError
from fedms.engines.process import WorkerProcess
from fedms.experiments import experiment
from fedms.federation.world import open_world
from fedms.runs.folder import IDENTITY
from tiny_run import run_config, write_texts

Change = Callable[[Path, Path], Any]


@pytest.fixture
def place(checkpoint, tmp_path: Path) -> Path:
    """A folder with texts.csv and a model of its own."""
    write_texts(tmp_path / "texts.csv")
    shutil.copytree(checkpoint("bert"), tmp_path / "model")
    return tmp_path


def config_of(place: Path, **changes: Any) -> fedms.Config:
    return run_config(place / "model", place / "texts.csv", **changes)


def rows(path: Path, change: Callable[[list[list[str]]], list[list[str]]]) -> None:
    with path.open(newline="") as file:
        head, *body = list(csv.reader(file))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *change(body)])


def weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    arrays = load_file(path)
    name = min(arrays)
    arrays[name] = arrays[name] + torch.tensor(1e-3, dtype=arrays[name].dtype)
    save_file(arrays, path, metadata={"format": "pt"})


def tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["music"], vocabulary["lights"] = vocabulary["lights"], vocabulary["music"]
    path.write_text(json.dumps(words))


def declaration(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))


CHANGES: dict[str, tuple[Change, str]] = {
    "a row is gone": (
        lambda texts, model: rows(texts, lambda body: body[:-1]),
        "it holds 119 samples, not 120",
    ),
    "two rows are swapped": (
        lambda texts, model: rows(texts, lambda body: [body[1], body[0], *body[2:]]),
        "its samples come in another order",
    ),
    "a text is another": (
        lambda texts, model: rows(texts, lambda body: [["please the lights", body[0][1]], *body[1:]]),
        "samples or their labels are different",
    ),
    "a label is another": (
        lambda texts, model: rows(texts, lambda body: [[body[0][0], body[-1][1]], *body[1:]]),
        "samples or their labels are different",
    ),
    "a class has another name": (
        lambda texts, model: rows(
            texts, lambda body: [[text, "songs" if label == "music" else label] for text, label in body]
        ),
        "class 'music' is gone, and 'songs' is new",
    ),
    "a weight is another": (lambda texts, model: weights(model), "its weights are different"),
    "the vocabulary is another": (
        lambda texts, model: tokenizer(model),
        "its tokenizer or image processor is different",
    ),
    "the declaration is another": (lambda texts, model: declaration(model), "its config.json is different"),
}


@pytest.mark.parametrize(("change", "told"), CHANGES.values(), ids=CHANGES)
def test_what_changed_behind_a_name_is_told_in_a_line(place, change, told):
    config = config_of(place)
    before = open_world(config).check()
    assert before.change(open_world(config).check(), config) is None
    change(place / "texts.csv", place / "model")
    line = before.change(open_world(config).check(), config)
    assert line is not None and line.endswith(f"changed since then: {told}") and "\n" not in line


def test_a_resumed_run_and_a_reused_stage_and_a_loaded_client_refuse_what_changed(place):
    run, first = place / "run", place / "first"
    experiment.run(config_of(place, method="fedavg-sal"), first)
    experiment.run(config_of(place), run, reuse=first)
    assert json.loads((run / IDENTITY).read_text())["data"]["samples"] == 120
    assert experiment.run(config_of(place), run, resume=True)["method"] == "fedms"
    fedms.load(run, "client-0").predict(["turn on the lights"])
    kept = (place / "texts.csv").read_bytes()
    rows(place / "texts.csv", lambda body: body[::-1])
    with pytest.raises(FedmsError, match="its samples come in another order; name another folder"):
        experiment.run(config_of(place), run, resume=True)
    with pytest.raises(FedmsError, match="its samples come in another order"):
        experiment.run(config_of(place), place / "other", reuse=first)
    assert not (place / "other").exists()
    fedms.load(run, "client-0")  # needs no data
    (place / "texts.csv").write_bytes(kept)
    weights(place / "model")
    with pytest.raises(FedmsError, match=r"model .* changed since then: its weights are different"):
        fedms.load(run, "client-0")


def test_a_comparison_sets_no_run_on_other_data_beside_a_new_one(place):
    config = config_of(place).model_dump(mode="json")
    fedms.compare(config, ["fedavg"], [0], place / "compared", report=False)
    rows(place / "texts.csv", lambda body: body[::-1])
    with pytest.raises(FedmsError, match="its samples come in another order"):
        fedms.compare(config, ["fedavg"], [0], place / "compared", report=False)


def test_one_path_typed_in_two_ways_is_the_same_data(place, monkeypatch):
    experiment.run(config_of(place), place / "run")
    monkeypatch.chdir(place)
    other = run_config(Path("./model"), Path("..") / place.name / "texts.csv")
    assert experiment.run(other, place / "run", resume=True)["method"] == "fedms"


def test_resume_is_suggested_only_where_it_helps(place):
    config, run = config_of(place), place / "run"
    experiment.run(config, run)
    with pytest.raises(FedmsError, match=r"holds this run, finished; name another folder with --out$"):
        experiment.run(config, run)
    with pytest.raises(FedmsError, match="was run with another config: seed 0, not 1; name another folder"):
        experiment.run(config_of(place, seed=1), run)
    (run / "result.json").unlink()
    with pytest.raises(FedmsError, match="go on with --resume, or name another folder"):
        experiment.run(config, run)


def test_a_worker_that_opens_other_data_says_so_and_does_not_train(place, capfd):
    config = config_of(place)
    data = open_world(config).glance
    rows(place / "texts.csv", lambda body: body[:-1])
    worker = WorkerProcess(config, data, place / "run", 0, 1, None)
    with pytest.raises(FedmsError, match="ended with code 1 as it started"):
        worker.ask(b"usage")
    worker.close()
    assert "changed since the run began: it holds 119 samples, not 120" in capfd.readouterr().err


def test_a_worker_sees_that_a_picture_was_exchanged(checkpoint, tmp_path, capfd):
    for number in range(60):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 12), number).save(path)
    shutil.copytree(checkpoint("vit"), tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    config = run_config(tmp_path / "vit", tmp_path / "pictures")
    data = open_world(config).glance
    assert open_world(config).glance == data
    Image.effect_noise((14, 14), 3).save(tmp_path / "pictures" / "a" / "0.png")
    worker = WorkerProcess(config, data, tmp_path / "run", 0, 1, None)
    with pytest.raises(FedmsError, match="ended with code 1 as it started"):
        worker.ask(b"usage")
    worker.close()
    assert "changed since the run began: samples or their labels are different" in capfd.readouterr().err
