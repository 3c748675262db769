"""Runs under differential privacy: what leaves the clients, what their ledgers say, and a kill in between."""

import json
from collections import defaultdict

import pytest
import torch

from fedms.experiments import experiment
from fedms.experiments.experiment import Experiment
from fedms.runs.report.run.page import write_report

pytest.importorskip("cryptography")
pytest.importorskip("dp_accounting")
pytestmark = pytest.mark.integration

PRIVATE = (
    "federation.rounds_global=0",
    "federation.rounds_local=1",
    "gate.share=none",
    "gate.features=backbone",
    "privacy.unit=record",
    "privacy.epsilon=4",
)
SHARED = ("federation.cohort=4", "privacy.secure_sum=true", "privacy.noise=shared")


def ledgers(run):
    return {
        path.parent.name: json.loads(path.read_text()) for path in run.folder.glob("clients/*/privacy.json")
    }


def test_sums_with_shared_noise_leave_a_client_and_nothing_else_of_training(perform, traffic):
    run = perform(*PRIVATE, *SHARED)
    kinds = {task.kind for task, _ in traffic.exchanges}
    assert kinds == {"sum-introduce", "sum-share", "statistics", "sum-reveal", "train", "test"}
    for update in traffic.updates("train"):
        assert (update.arrays, update.metrics) == ({}, {})
    [line] = run.rounds("local")
    assert (line["train_loss"], line["validation_score"], line["failures"]) == (None, None, [])

    kept, told = ledgers(run), run.result["privacy"]
    assert told["spent"] == {name: each["spent"] for name, each in kept.items()}
    assert [*told["spent"].values()] == pytest.approx([4.0] * 4)
    assert (told["unit"], told["noise"], told["protects"]) == ("record", "shared", True)
    assert {len(each["events"]) for each in kept.values()} == {1}

    page = write_report(run.folder).read_text()
    assert "epsilon spent" in page
    assert "protects nobody" not in page


def test_a_run_that_is_killed_after_its_release_sends_the_same_bits_again(
    tiny, tmp_path, traffic, monkeypatch
):
    config, out = tiny(*PRIVATE, "method=statistics"), tmp_path / "run"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Experiment, "_close", killed)
        experiment.run(config, out)
    experiment.run(config, out, resume=True)
    sent = defaultdict(list)
    for update in traffic.updates("statistics"):
        sent[update.client].append(update.arrays)
    assert len(sent) == 4
    for first, again in sent.values():
        assert all(torch.equal(first[name], again[name]) for name in first)
    for path in out.glob("clients/*/privacy.json"):
        assert len(json.loads(path.read_text())["events"]) == 1
