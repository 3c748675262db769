"""What clients send and what it costs: sparse activation saves both, and what is private stays."""

import pytest
import torch

from fedms.core.files import read_arrays
from fedms.federation.tiers import capacities
from fedms.model.arrays import block_of

pytestmark = pytest.mark.integration

EVERYBODY = "federation.cohort=4"
TIERS = "activation.capacity=[{share: 0.25, blocks: 1}, {share: 0.25, blocks: 2}, {share: 0.5, blocks: 3}]"
ADAPTER = {"gate.adapter.down", "gate.adapter.up"}
SUMS = {
    "statistics.counts",
    "statistics.sums",
    "calibrate.log_likelihood",
    "head.log_likelihood",
    "label_prior.log_likelihood",
    "interpolate.log_likelihood",
    "weigh.log_likelihood",
}


def test_few_blocks_are_cheap_to_send_and_to_train(finished):
    # no validation travels with the training of the last round
    three = (EVERYBODY, "federation.rounds_global=3", "evaluation.every=3")
    rounds = finished("method=fedavg-sal", *three).rounds("global")
    assert [line["active_blocks"] for line in rounds] == [1, 2, 3]
    for key in ("uplink_bytes", "downlink_bytes", "train_flops"):
        first, second, third = (line[key] for line in rounds)
        assert 0 < first < second < third
    whole = finished("method=fedavg", *three).rounds("global")
    assert [line["active_blocks"] for line in whole] == [3, 3, 3]
    assert rounds[0]["uplink_bytes"] < 0.6 * whole[0]["uplink_bytes"]
    assert rounds[0]["train_flops"] < 0.6 * whole[0]["train_flops"]
    assert rounds[2]["uplink_bytes"] == whole[2]["uplink_bytes"]


def test_a_plateau_grows_in_a_run(finished):
    rule = (
        "activation.rule=plateau",
        "activation.queue=2",
        "activation.epsilon=1",
        "activation.min_rounds=2",
    )
    run = finished("method=fedavg-sal", *rule, "federation.rounds_global=7")
    assert [line["active_blocks"] for line in run.rounds("global")] == [1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("method", ["fedavg", "fedavg-finetune", "local", "statistics"])
def test_a_method_that_trains_all_blocks_or_none_does_not_ask_how_many_are_active(finished, method):
    one, two = (
        finished(f"method={method}", f"activation.blocks={blocks}", "activation.rule=plateau")
        for blocks in (1, 2)
    )
    assert one.outcome == two.outcome


def test_a_client_never_sends_a_block_below_its_capacity(perform, tiny, traffic):
    overrides = (EVERYBODY, TIERS, "federation.rounds_global=4")
    perform(*overrides)
    config = tiny(*overrides)
    allowed = capacities(config.activation, [f"client-{number}" for number in range(4)], 3, config.seed)
    assert sorted(allowed.values()) == [1, 2, 3, 3]
    deepest: dict[str, int] = {}
    for update in traffic.updates("train", "global"):
        lowest = min(block for name in update.arrays if (block := block_of(name)) is not None)
        deepest[update.client] = max(deepest.get(update.client, 0), 3 - lowest)
    assert deepest == allowed


def test_the_local_expert_and_the_gate_network_never_leave_the_client(perform, traffic):
    run = perform()
    assert {name for update in traffic.updates("train", "local") for name in update.arrays} == ADAPTER
    blocks = {name for update in traffic.updates("train", "global") for name in update.arrays}
    assert all(name.startswith(("block.", "head.")) for name in blocks)
    others = {name for update in traffic.updates() for name in update.arrays} - blocks - ADAPTER
    assert others <= SUMS
    sent = {array.numpy().tobytes() for update in traffic.updates() for array in update.arrays.values()}
    private = 0
    for path in (run.folder / "clients").rglob("*.safetensors"):
        for name, array in read_arrays(path)[0].items():
            if (
                name.startswith(("local/block.", "local/head.weight", "local/head.bias", "gate.network."))
                and array.unique().numel() > 1
            ):
                assert array.numpy().tobytes() not in sent, f"{name} was sent under another name"
                private += 1
    assert private > 50


def test_no_task_carries_what_another_client_keeps(perform, traffic):
    perform()
    for task, _ in traffic.exchanges:
        assert not [name for name in task.arrays if name.startswith(("local/", "gate.network.", "own."))]


@pytest.mark.parametrize(
    ("share", "names"),
    [
        ("none", set()),
        ("adapter", ADAPTER),
        (
            "all",
            ADAPTER
            | {f"gate.network.{name}" for name in ("hidden.weight", "hidden.bias", "out.weight", "out.bias")},
        ),
    ],
)
def test_of_the_gate_travels_what_is_to_be_shared(perform, traffic, share, names):
    run = perform(f"gate.share={share}")
    updates = traffic.updates("train", "local")
    assert len(updates) == 8 and all(set(update.arrays) == names for update in updates)
    down = {
        name
        for task, _ in traffic.exchanges
        if (task.kind, task.stage, task.round) == ("train", "local", 2)
        for name in task.arrays
    }
    assert down == names
    kept = read_arrays(run.folder / "clients" / "client-0" / "model.safetensors")[0]
    assert kept.keys() >= ADAPTER and "gate.network.out.weight" in kept


def test_the_adapter_that_all_end_with_is_the_mean_of_what_they_sent(perform, traffic):
    run = perform()
    last = [
        update
        for task, update in traffic.exchanges
        if (task.kind, task.stage, task.round) == ("train", "local", 2)
    ]
    weights = torch.tensor([update.weight for update in last])
    wanted = sum(
        weight * update.arrays["gate.adapter.up"]
        for weight, update in zip(weights / weights.sum(), last, strict=True)
    )
    assert wanted.any()
    for number in range(4):
        kept = read_arrays(run.folder / "clients" / f"client-{number}" / "model.safetensors")[0]
        torch.testing.assert_close(kept["gate.adapter.up"], wanted)


@pytest.mark.parametrize("method", ["local", "fedavg-finetune", "mixture-constant"])
def test_a_stage_that_shares_nothing_sends_nothing(perform, traffic, method):
    perform(f"method={method}")
    assert all(
        not update.arrays for update in traffic.updates("train", "local") + traffic.updates("train", "alone")
    )


def test_freeze_a_sends_no_a_and_exact_sends_the_residual_down(perform, traffic):
    perform("method=fedavg-sal", "federation.aggregation=freeze-a", EVERYBODY)
    assert not [
        name for update in traffic.updates("train") for name in update.arrays if name.endswith(".lora_A")
    ]
    traffic.messages.clear()
    perform("method=fedavg-sal", "federation.aggregation=exact", EVERYBODY)
    assert not [name for update in traffic.updates() for name in update.arrays if name.endswith(".residual")]
    assert [name for task, _ in traffic.exchanges for name in task.arrays if name.endswith(".residual")]


def asked(traffic, kind):
    return sorted({task.client for task, _ in traffic.exchanges if task.kind == kind})


@pytest.mark.parametrize("method", ["fedms", "statistics", "mixture-count", "fedavg-prior"])
@pytest.mark.parametrize("features", ["global", "backbone"])
def test_a_few_clients_can_speak_for_all_in_sums_and_in_validation(perform, traffic, method, features):
    run = perform(
        f"method={method}", "statistics.clients=2", "evaluation.clients=3", f"gate.features={features}"
    )
    assert len(asked(traffic, "statistics")) == 2 and asked(traffic, "calibrate") == asked(
        traffic, "statistics"
    )
    assert len(asked(traffic, "evaluate")) == (0 if method == "statistics" else 3)
    assert len(asked(traffic, "interpolate")) == (3 if method in ("fedms", "mixture-count") else 0)
    assert len(asked(traffic, "weigh")) == (3 if method == "fedms" else 0)
    assert len(asked(traffic, "test")) == len(run.result["per_client"]) == 4
    assert not [failure for line in run.lines for failure in line["failures"]]
    if (
        method == "fedms"
    ):  # everybody's gate stands on the same sums, however few sent them, and they were sent once
        made = [read_arrays(path)[0] for path in sorted((run.folder / "clients").glob("*/model.safetensors"))]
        assert len(made) == 4 and all(
            torch.equal(each["discriminant.means"], made[0]["discriminant.means"]) for each in made
        )
        rounds = [task for task, _ in traffic.exchanges if (task.kind, task.stage) == ("train", "local")]
        with_them = [task.client for task in rounds if "discriminant.means" in task.arrays]
        assert sorted(with_them) == sorted({task.client for task in rounds} - {*asked(traffic, "statistics")})
        assert not [
            task
            for task, _ in traffic.exchanges
            if task.kind in ("weigh", "test") and "discriminant.means" in task.arrays
        ]


def test_clients_that_validate_are_the_same_each_round(perform, traffic):
    perform("method=fedavg-sal", "evaluation.clients=2", "federation.rounds_global=3")
    by_round = [
        {task.client for task, _ in traffic.exchanges if task.kind == "evaluate" and task.round == number}
        for number in (1, 2, 3)
    ]
    assert len(by_round[0]) == 2 and by_round[0] == by_round[1] == by_round[2]


def test_evaluation_has_a_ledger_of_its_own(finished):
    """Less of it changes nothing of what training costs; a prefix counts once, where something first stands
    on it.
    """
    top = ("activation.rule=fixed", "activation.blocks=1", "evaluation.validation=false")
    always, seldom = finished(*top), finished(*top, "evaluation.every=2")
    assert seldom.result["train_flops"] == always.result["train_flops"]
    assert seldom.result["evaluation_flops"] < always.result["evaluation_flops"]
    lines = always.outcome[1]
    spent = {
        name: [line["evaluation_flops"] for line in lines if line["stage"] == name]
        for name in ("statistics", "global", "local", "end")
    }
    assert always.result["evaluation_flops"] == sum(map(sum, spent.values()))
    assert sum(spent["statistics"]) == 0 < min(spent["local"] + spent["end"])
    assert min(spent["global"]) > 0 and len(set(spent["global"])) == 1, (
        "its prefix has been there since the temperature was chosen"
    )
    alone = finished(*top, "head.kind=linear", "gate.evidence=counts")
    first, *later = [line["evaluation_flops"] for line in alone.outcome[1] if line["stage"] == "global"]
    assert first > max(later) == spent["global"][0], "the prefix, and from then on what stands above it"


def test_the_time_that_evaluation_took_is_a_part_of_the_rounds(finished):
    run = finished()
    assert all(0 <= line["evaluation_seconds"] <= line["seconds"] for line in run.lines)
    assert all((line["evaluation_seconds"] > 0) == (line["stage"] != "statistics") for line in run.lines)
    assert run.result["evaluation_seconds"] == pytest.approx(
        sum(line["evaluation_seconds"] for line in run.lines), abs=1e-3
    )
