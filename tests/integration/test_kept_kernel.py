"""A run keeps the kernel of its frozen products: in its workers, when it is resumed, and in predict."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from outcomes import outcome, state

import fedms
from fedms.core.errors import FedmsError
from fedms.experiments import experiment
from fedms.experiments.observers import Silent
from fedms.model.kernels import has_onednn

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not has_onednn(), reason="this PyTorch has no oneDNN"),
]
ONEDNN, PLAIN = "engine.kernels=onednn", "engine.kernels=torch"


@pytest.fixture(scope="session")
def wide(text_model, tmp_path_factory) -> str:
    """A model whose products have sums long enough to be added in another order by each kernel."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("wide")
    shutil.copytree(text_model, folder, dirs_exist_ok=True)
    config = hf.AutoConfig.from_pretrained(text_model)
    config.intermediate_size = 512
    torch.manual_seed(0)
    hf.BertModel(config).save_pretrained(folder)
    return f"model.name={folder}"


class Leaves(Silent):
    """Gives up after two rounds."""

    rounds = 2

    def round_done(self, record) -> None:
        self.rounds -= 1
        if self.rounds == 0:
            raise KeyboardInterrupt


def kernel_of(folder) -> str:
    return json.loads((folder / "environment.json").read_text())["kernels"]


def test_the_kernel_is_recorded_and_shows_in_the_last_bits_alone(finished, wide):
    plain, fast = finished(wide, PLAIN), finished(wide, ONEDNN)
    assert (kernel_of(plain.folder), kernel_of(fast.folder)) == ("torch", "onednn")
    assert state(plain.folder) != state(fast.folder), "else the tests below could not fail"
    for one, other in zip(plain.lines, fast.lines, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-4)


def test_workers_take_over_the_kernel(finished, perform, wide):
    alone, together = finished(wide, ONEDNN), perform(wide, ONEDNN, "engine.workers=2")
    assert alone.outcome == together.outcome
    assert state(alone.folder) == state(together.folder)


@pytest.mark.parametrize("now", ["auto", "torch"])
def test_a_resumed_run_keeps_its_kernel(finished, tiny, wide, tmp_path, caplog, now):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tiny(wide, ONEDNN), run, Leaves())
    with caplog.at_level(logging.WARNING):
        experiment.run(tiny(wide, f"engine.kernels={now}"), run, resume=True)
    assert kernel_of(run) == "onednn"
    assert state(run) == state(finished(wide, ONEDNN).folder)
    assert outcome(run)["lines"] == outcome(finished(wide, ONEDNN).folder)["lines"]
    assert ("engine.kernels: this run began with onednn" in caplog.text) == (now == "torch")


@pytest.mark.parametrize("text", ['{"kernels": "abacus"}', "[]"])
def test_a_run_that_does_not_say_its_kernel_is_not_resumed(tiny, tmp_path, text):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tiny(ONEDNN), run, Leaves())
    (run / "environment.json").write_text(text)
    with pytest.raises(FedmsError, match=r"environment\.json: damaged: it does not say which kernels"):
        experiment.run(tiny(ONEDNN), run, resume=True)


def test_predict_computes_by_the_kernel_of_the_run(finished, wide):
    client = fedms.load(finished(ONEDNN).folder, "client-0")
    assert client.backbone.kernel == "onednn"
    other = fedms.load(finished().folder, "client-0")
    assert other.backbone.kernel == "torch"
    assert client.predict(["lamp on please"])[0].label in client.classes
