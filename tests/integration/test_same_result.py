"""The same config and seed give the same result, whatever the workers, the cache, or the run that it was
taken from.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from outcomes import state

from fedms.config import load_config
from fedms.core.errors import FedmsError
from fedms.core.files import read_arrays
from fedms.experiments import experiment
from fedms.experiments.observers import Silent

pytestmark = pytest.mark.integration

TIERS = "activation.capacity=[{share: 0.5, blocks: 1}, {share: 0.5, blocks: 3}]"
EVERYTHING = (TIERS, "federation.aggregation=exact", "federation.cohort_local=3")
"""Whatever could depend on an order: growth, tiers, residuals, a cohort in both stages."""


def test_the_same_seed_gives_the_same_run_to_the_last_bit(finished, perform):
    first, second = finished(*EVERYTHING), perform(*EVERYTHING)
    assert first.outcome == second.outcome
    assert state(first.folder) == state(second.folder)


def test_workers_give_the_same_run_to_the_last_bit(finished, perform):
    alone, together = finished(*EVERYTHING), perform(*EVERYTHING, "engine.workers=2")
    assert alone.outcome == together.outcome
    assert state(alone.folder) == state(together.folder)
    assert not (together.folder / "cache").exists()


WARM = (
    "activation.rule=warm",
    "activation.blocks=1",
    "activation.warm_rounds=1",
    "federation.rounds_global=3",
    "method=fedavg-sal",
)


def test_after_the_warm_rounds_the_lower_pairs_stay_in_the_prefix(finished, perform):
    run, dense, together = (
        finished(*WARM),
        finished(*WARM, "activation.blocks=all"),
        perform(*WARM, "engine.workers=2"),
    )
    assert run.outcome == together.outcome and state(run.folder) == state(together.folder)
    assert [line["active_blocks"] for line in run.rounds("global")] == [3, 1, 1]
    arrays = [read_arrays(each.folder / "server" / "after-global.safetensors")[0] for each in (run, dense)]
    blocks = {name for name in arrays[0] if "lora_B" in name}
    assert {name.partition("/")[0] for name in blocks} == {"shared", "frozen"}
    assert all(arrays[0][name].abs().max() > 0 for name in blocks), "all blocks were trained"
    assert {name.partition("/")[2] for name in blocks} == {
        name.partition("/")[2] for name in arrays[1] if "lora_B" in name
    }
    assert run.result["trainable_parameters"] == dense.result["trainable_parameters"]
    for key in ("uplink_bytes", "train_flops"):
        first, *later = (
            (one[key], other[key])
            for one, other in zip(run.rounds("global"), dense.rounds("global"), strict=True)
        )
        assert first[0] == first[1] and all(one < other for one, other in later)


def test_the_prefix_with_pairs_is_what_no_cache_gives(finished, perform):
    cached, plain = finished(*WARM), perform(*WARM, "cache.enabled=false")
    assert [line["validation_score"] for line in cached.rounds("global")] == [
        line["validation_score"] for line in plain.rounds("global")
    ]


def test_another_seed_gives_another_run(finished):
    (result, lines), (other, others) = finished().outcome, finished("seed=1").outcome
    assert result["partition"]["counts"] != other["partition"]["counts"]
    assert [line["train_loss"] for line in lines] != [line["train_loss"] for line in others]


# the cache


NO_ROOM = ("cache.memory_mb=0", "cache.disk_mb=0")


class Watch(Silent):
    """Looks for cache files after each round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = 0

    def round_done(self, record) -> None:
        self.seen += len(list(self.folder.rglob("*.float32")))


def test_the_cache_on_disk_is_the_cache_in_memory(finished, tiny, tmp_path):
    watch = Watch(tmp_path / "run")
    experiment.run(tiny("cache.memory_mb=0"), watch.folder, watch)
    assert watch.seen > 0, "the disk was not used"
    in_memory = finished()
    assert replace(in_memory, folder=watch.folder).outcome == in_memory.outcome
    assert not list(watch.folder.rglob("*.float32")) and not (watch.folder / "cache").exists()


def test_a_cache_without_room_anywhere_gives_what_no_cache_gives(finished):
    small, none = finished(*NO_ROOM), finished("cache.enabled=false")
    for key in ("accuracy_local", "accuracy_global", "frontier", "validation", "gate_global_share"):
        assert small.result[key] == none.result[key]
    assert [line["train_loss"] for line in small.lines] == [line["train_loss"] for line in none.lines]
    assert none.result["train_flops"] > 1.1 * finished().result["train_flops"]


def test_a_cache_without_room_costs_no_more_than_no_cache(finished):
    assert finished(*NO_ROOM).result["train_flops"] <= finished("cache.enabled=false").result["train_flops"]


def test_with_the_cache_and_without_it_minilm_is_as_good(tmp_path):
    base = {
        "data": {"limit": 320},
        "partition": {"clients": 4},
        "federation": {"cohort": 4, "rounds_global": 1, "rounds_local": 1},
        "evaluation": {"everyone": 40},
        "engine": {"workers": 1},
    }
    found = [
        experiment.run(load_config(base, [f"cache.enabled={on}"]), tmp_path / on) for on in ("true", "false")
    ]
    for key in ("accuracy_local", "accuracy_global", "accuracy_base"):
        assert abs(found[0][key] - found[1][key]) <= 0.005
    assert found[0]["train_flops"] < 0.75 * found[1]["train_flops"]


# one run from another


def without(outcome: Any, *keys: str) -> Any:
    """The same without these keys, wherever they are."""
    if isinstance(outcome, dict):
        return {key: without(value, *keys) for key, value in outcome.items() if key not in keys}
    return [without(value, *keys) for value in outcome] if isinstance(outcome, list | tuple) else outcome


def test_a_first_stage_taken_from_another_run_gives_what_the_whole_run_gives(finished, perform):
    again = perform(reuse=finished("method=fedavg-sal").folder)
    costs = ("downlink_bytes", "train_flops", "evaluation_flops")  # held below
    assert without(again.outcome, *costs) == without(finished().outcome, *costs)
    assert again.rounds("global") == finished("method=fedavg-sal").rounds("global")


def test_a_first_stage_taken_from_another_run_costs_the_same_bytes(finished, perform):
    run = perform(
        "statistics.shrinkage=0.5", reuse=finished("method=fedavg-sal", "statistics.shrinkage=0.5").folder
    )
    assert run.result["downlink_bytes"] == finished("statistics.shrinkage=0.5").result["downlink_bytes"]


def test_a_first_stage_taken_from_another_run_costs_no_less_computation(finished, perform):
    """The new run's cache is empty, and filling it again is work that was done, so it is counted."""
    run = perform(reuse=finished("method=fedavg-sal").folder)
    assert run.result["train_flops"] >= finished().result["train_flops"]


@pytest.mark.parametrize(
    ("overrides", "other"),
    [
        (("seed=1",), ("method=fedavg-sal",)),
        (("federation.rounds_global=1",), ("method=fedavg-sal",)),
        ((), ("method=fedavg",)),
        ((), ("method=statistics",)),
        ((), ()),
    ],
    ids=["another seed", "other rounds", "another first stage", "no stage", "more than the first stage"],
)
def test_a_run_that_is_not_this_first_stage_is_refused_in_one_line(
    finished, tiny, tmp_path, overrides, other
):
    with pytest.raises(
        FedmsError, match="not a finished run of this experiment's first stage alone"
    ) as caught:
        experiment.run(tiny(*overrides), tmp_path / "run", reuse=finished(*other).folder)
    assert "\n" not in str(caught.value)


def test_what_comes_after_the_first_stage_may_differ(finished, perform):
    later = ("federation.rounds_local=1", "activation.blocks_local=all", "gate.prior=0.3")
    again = perform(*later, reuse=finished("method=fedavg-sal").folder)
    costs = ("downlink_bytes", "train_flops", "evaluation_flops")
    assert without(again.outcome, *costs) == without(finished(*later).outcome, *costs)


def test_a_folder_that_is_no_run_is_refused_in_one_line(tiny, tmp_path):
    with pytest.raises(FedmsError, match="cannot read the config") as caught:
        experiment.run(tiny(), tmp_path / "run", reuse=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_refused_reuse_leaves_no_run_folder(tiny, tmp_path):
    with pytest.raises(FedmsError):
        experiment.run(tiny(), tmp_path / "run", reuse=tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()
