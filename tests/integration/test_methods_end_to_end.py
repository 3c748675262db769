"""Every method runs, leaves the files that README promises, and its numbers are what they say."""

import math

import pytest
import torch
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.core.files import read_arrays
from fedms.data.federated import Samples
from fedms.federation.methods import METHODS
from fedms.federation.recipe import recipe_for
from fedms.federation.world import open_world
from fedms.model.arrays import strip
from fedms.model.expert import Expert
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner

pytestmark = pytest.mark.integration

SHARES = ["accuracy_local", "accuracy_local_worst", "accuracy_global", "accuracy_base", "trainable_fraction"]
COSTS = [
    "trainable_parameters",
    "uplink_bytes",
    "downlink_bytes",
    "train_flops",
    "seconds",
    "peak_memory_bytes",
]
OTHERS = ["method", "seed", "clients", "rounds", "frontier", "gate_global_share", "per_client"]
LINE = [
    "stage",
    "round",
    "active_blocks",
    "cohort",
    "failures",
    "train_loss",
    "validation_score",
    "uplink_bytes",
    "downlink_bytes",
    "train_flops",
    "seconds",
]
every_method = pytest.mark.parametrize("method", METHODS)


def numbers(value):
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


@every_method
def test_a_method_leaves_every_file_of_the_run_folder(finished, method):
    folder = finished(f"method={method}").folder
    there = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "result.json", "server", "clients"} <= there
    assert "cache" not in there and not list(folder.rglob("*.float32"))
    assert {path.name for path in (folder / "clients").iterdir()} == {
        f"client-{number}" for number in range(4)
    }
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        ".yaml",
        ".json",
        ".jsonl",
        ".safetensors",
        ".csv",
    }
    for client in (folder / "clients").iterdir():
        read_arrays(client / "model.safetensors")
    stages = {stage.name for stage in METHODS[method].stages}
    server = {path.name for path in (folder / "server").iterdir()}
    assert server == {"lines.jsonl"} | {f"after-{name}.safetensors" for name in stages}
    assert all(len([*(folder / "clients").glob(f"{name}/state-*")]) <= 1 for name in ("client-0", "client-3"))
    assert not [*folder.rglob("received-*")]


@every_method
def test_a_result_has_every_key_and_its_numbers_are_in_range(finished, tiny, method):
    result = finished(f"method={method}").result
    assert set(SHARES + COSTS + OTHERS) <= result.keys()
    assert all(math.isfinite(number) for number in numbers(result))
    assert all(0 <= result[key] <= 1 for key in SHARES)
    assert (result["method"], result["seed"], result["clients"], result["rounds"]) == (
        method,
        0,
        4,
        2 * len(METHODS[method].stages),
    )
    assert result["accuracy_local_worst"] == min(client["accuracy_local"] for client in result["per_client"])
    assert all(result[key] > 0 for key in ("seconds", "peak_memory_bytes"))
    assert (result["trainable_parameters"] == 0) == (not METHODS[method].stages)
    assert (result["train_flops"] > 0) and isinstance(result["train_flops"], int)
    assert (result["gate_global_share"] is not None) == (METHODS[method].predicts in ("mixture", "blend"))
    assert [point["prior"] for point in result["frontier"]] == (
        [n / 10 for n in range(11)] if recipe_for(tiny(f"method={method}")).has_frontier else []
    )


@every_method
def test_the_accuracies_are_the_means_over_the_clients(finished, method):
    run = finished(f"method={method}")
    clients = run.result["per_client"]
    assert [client["name"] for client in clients] == [f"client-{number}" for number in range(4)]
    for key in ("accuracy_local", "accuracy_global", "gate_global_share"):
        values = [client[key] for client in clients if client[key] is not None]
        assert run.result[key] == (pytest.approx(sum(values) / 4) if values else None)
    for point in run.result["frontier"]:
        if point["prior"] == run.result["prior"]:
            assert (point["accuracy_local"], point["accuracy_global"]) == (
                run.result["accuracy_local"],
                run.result["accuracy_global"],
            )


@every_method
def test_every_round_is_a_line_and_the_lines_add_up_to_the_result(finished, method):
    run = finished(f"method={method}")
    for line in run.lines:
        assert set(LINE) <= line.keys()
        assert all(math.isfinite(number) and number >= 0 for number in numbers(line))
        assert line["failures"] == [] and 0 <= line["active_blocks"] <= 3
        assert set(line["cohort"]) <= {f"client-{number}" for number in range(4)}
    for stage in METHODS[method].stages:
        rounds = run.rounds(stage.name)
        assert [line["round"] for line in rounds] == [1, 2]
        assert [len(line["cohort"]) for line in rounds] == ([2, 2] if stage.budget == "global" else [4, 4])
        assert all(line["train_loss"] > 0 and 0 <= line["validation_score"] <= 1 for line in rounds)
    for key in ("uplink_bytes", "downlink_bytes", "train_flops"):
        assert sum(line[key] for line in run.lines) == run.result[key]


def test_the_command_leaves_the_report_beside_it(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.yaml").write_text(
        tiny("federation.rounds_global=1", "federation.rounds_local=1").to_yaml()
    )
    done = CliRunner().invoke(app, ["run", "quick.yaml", "--set", "seed=3"])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "runs" / "quick-fedms-3"
    assert (folder / "report.html").stat().st_size > 1000 and list((folder / "figures").glob("*.png"))


# what the frontier says, judged again from the files of the clients


def accuracies(run, world, client: str, expert: str) -> tuple[float, float]:
    """One expert from a client's folder on the client's own and on everyone's test data."""
    arrays, _ = read_arrays(run.folder / "clients" / client / "model.safetensors")
    compute = Runner(
        world.backbone, PrefixCache(world.backbone, world.inputs, 0, 0, run.folder / "none", enabled=False)
    )
    found = Expert(strip(arrays, f"{expert}/"), world.config.lora.alpha / world.config.lora.rank)

    def accuracy(samples: Samples) -> float:
        logits = compute.outputs(found, samples, 0).logits
        assert logits is not None
        return float((logits.argmax(1) == samples.labels).float().mean())

    return accuracy(world.samples(client, "test")), accuracy(world.everyone["test"])


@pytest.mark.parametrize(
    "overrides",
    [(), ("mixture.on=logits",), ("method=mixture-constant",)],
    ids=["fedms", "logits", "constant"],
)
def test_the_frontier_ends_in_the_two_experts(finished, tiny, overrides):
    run, world = finished(*overrides), open_world(tiny(*overrides))
    frontier = {point["prior"]: point for point in run.result["frontier"]}
    for prior, expert in ((1.0, "local"), (0.0, "global")):
        found = torch.tensor([accuracies(run, world, client, expert) for client in world.clients]).mean(0)
        wanted = [frontier[prior]["accuracy_local"], frontier[prior]["accuracy_global"]]
        assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    assert frontier[1.0] | {"prior": None} != frontier[0.0] | {"prior": None}, (
        "the experts do not differ, so nothing was held"
    )


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_a_run_at_an_end_is_that_end_of_the_frontier(finished, prior):
    at = finished(f"gate.prior={prior}").result
    point = next(point for point in finished().result["frontier"] if point["prior"] == prior)
    assert (at["accuracy_local"], at["accuracy_global"]) == (
        point["accuracy_local"],
        point["accuracy_global"],
    )
