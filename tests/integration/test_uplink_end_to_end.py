"""Runs whose trained arrays travel in fewer bytes: as good, smaller, and the same however they are run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from outcomes import outcome, state

from fedms.config import load_config
from fedms.experiments import experiment
from fedms.experiments.observers import Silent

pytestmark = pytest.mark.integration

INT8, INT4 = "federation.uplink=int8", "federation.uplink=int4"


def test_a_run_is_as_good_in_a_quarter_of_the_bytes(tmp_path):
    base = {
        "method": "fedavg-sal",
        "data": {"limit": 320},
        "partition": {"clients": 4},
        "federation": {"cohort": 4, "rounds_global": 2},
        "evaluation": {"everyone": 40},
        "engine": {"workers": 1},
    }
    found, up = {}, {}
    for form in ("float32", "int8"):
        found[form] = experiment.run(load_config(base, [f"federation.uplink={form}"]), tmp_path / form)
        lines = (tmp_path / form / "metrics.jsonl").read_text().splitlines()
        rounds = [line for line in map(json.loads, lines) if line["stage"] == "global"]
        assert len(rounds) == 2 and not any(line["failures"] for line in rounds)
        up[form] = sum(line["uplink_bytes"] for line in rounds)
    assert up["float32"] >= 3.8 * up["int8"]
    for key in ("accuracy_local", "accuracy_global"):
        assert abs(found["int8"][key] - found["float32"][key]) <= 0.02


@pytest.mark.parametrize("form", [INT8, INT4])
def test_workers_give_the_same_run_to_the_last_bit(finished, perform, form):
    alone, together = finished(form), perform(form, "engine.workers=2")
    assert alone.outcome == together.outcome
    assert state(alone.folder) == state(together.folder)
    assert state(alone.folder) != state(finished().folder)


class GivesUp(Silent):
    """After so many rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def round_done(self, record: dict[str, Any]) -> None:
        self.rounds -= 1
        if self.rounds == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(finished, tiny, tmp_path, rounds):
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tiny(INT8), tmp_path / "run", GivesUp(rounds))
    experiment.run(tiny(INT8), tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(finished(INT8).folder)


EVERY_WAY = (
    ("method=fedavg", "federation.aggregation=exact"),
    (
        "method=fedavg",
        "federation.aggregation=svd",
        "lora.tiers=[{share: 0.5, rank: 1}, {share: 0.5, rank: 2}]",
    ),
    ("method=fedavg", "federation.aggregation=freeze-a"),
    ("method=fedavg", "federation.robust=multi-krum", "federation.cohort=4"),
    ("method=fedalt",),
    ("method=fedper",),
    ("method=promptfl",),
    ("gate.share=all",),
    ("gate.objective=likelihood",),
)


@pytest.mark.parametrize("form", ["bfloat16", "int4"])
@pytest.mark.parametrize("overrides", EVERY_WAY, ids=" ".join)
def test_every_method_and_aggregator_takes_it(perform, traffic, form, overrides):
    run = perform(*overrides, f"federation.uplink={form}")
    assert not [failure for line in run.lines for failure in line["failures"]]
    sent = {"uplink.codes"} if form == "bfloat16" else {"uplink.codes", "uplink.scales"}
    trained = [update for update in traffic.updates("train") if update.arrays]
    assert trained and all(set(update.arrays) == sent for update in trained)
    others = [update for task, update in traffic.exchanges if task.kind != "train"]
    types = {array.dtype for update in others for array in update.arrays.values()}
    assert types <= {torch.float32, torch.float64, torch.int64}, "what is no update travels as it is"


def test_statistics_travel_as_they_are(finished):
    plain, packed = (run.rounds("statistics")[0]["uplink_bytes"] for run in (finished(), finished(INT8)))
    assert plain == packed
