"""The property that defines each method: what trains, what travels, and what becomes of it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedms.config.sections import TrainingConfig
from fedms.core import seeds
from fedms.core.errors import ConfigError
from fedms.federation.activation import Activation
from fedms.federation.admission import Admission
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import TRAINING
from fedms.federation.methods import METHODS
from fedms.model.arrays import strip
from fedms.model.expert import Expert
from fedms.model.heads import nearest_head
from fedms.model.lora import LoraLinear, Pair
from fedms.model.parts import fresh_lora, fresh_parts, group, trained_names
from fedms.training.expert_training import Plan, train_expert
from fedms.training.inputs import batches

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}
KEY = "block.1.query"


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(one, other) -> float:
    """Between the LoRA pairs of two sets of arrays."""
    return float(
        sum((one[name] - other[name]).square().sum() for name in one if name.startswith("block.")) ** 0.5
    )


def product(arrays, stem=KEY):
    """scale is left out."""
    return arrays[f"{stem}.lora_B"].double() @ arrays[f"{stem}.lora_A"].double()


def mean(updates, value):
    """Over clients, by their samples."""
    total = sum(update.weight for update in updates)
    return sum(update.weight / total * value(update.arrays) for update in updates)


def trainee(world, folder, groups=("A", "B", "head")):
    """An expert of all blocks in which nothing is zero, its trained names, and what is needed to train it on
    a client's data.
    """
    generator = torch.Generator().manual_seed(1)
    blocks = range(world.backbone.depth)
    arrays = fresh_lora(world.backbone, blocks, 2, 0) | nearest_head(world.class_embeddings)
    arrays = {
        name: array + 0.1 * torch.randn(array.shape, generator=generator) for name, array in arrays.items()
    }
    names = trained_names(world.backbone, groups, blocks, "linear")
    samples = world.samples("client-0", "train")
    return Expert(arrays, 1.0), names, ClientHost(world, folder).runner, samples


# FedProx


def test_fedprox_without_its_term_is_fedavg_bit_for_bit(federation):
    made = [federation("fedavg"), federation("fedprox", "training.proximal=0")]
    for number in (1, 2):
        for each in made:
            each.round(number)
    assert same(made[0].server.shared, made[1].server.shared)


def test_fedprox_keeps_clients_the_nearer_to_what_they_were_sent_the_larger_its_weight(federation):
    moved = []
    for weight in (0, 1, 100):
        made = federation("fedprox", f"training.proximal={weight}")
        sent = dict(made.server.shared)
        moved.append([distance(update.arrays, sent) for update in made.round(1).values()])
    assert all(none > some > much > 0 for none, some, much in zip(*moved, strict=True))


def test_the_proximal_gradient_is_the_weighted_distance_to_the_anchor(opened, tmp_path, monkeypatch):
    world, mu, rate = opened("head.kind=text-init"), 0.7, 0.01
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **_: torch.optim.SGD(groups))
    after = {}
    for weight in (0.0, mu):
        expert, names, runner, samples = trainee(world, tmp_path)
        start = dict(expert.arrays)
        anchor = {name: torch.full_like(array, 0.3) for name, array in start.items()}
        plan = Plan(names, (rate, rate), anchor=anchor, proximal=weight)
        train_expert(
            runner,
            expert,
            plan,
            samples,
            0,
            TrainingConfig(batch_size=len(samples)),
            np.random.default_rng(0),
        )
        after[weight] = expert.arrays
    for name in names:
        torch.testing.assert_close(
            after[0.0][name] - after[mu][name], rate * mu * (start[name] - anchor[name]), **CLOSE
        )


# Ditto


def finetuned(made):
    """The local experts after one global round and two of each client alone, and the global one they come
    from.
    """
    made.round(1)
    shared = dict(made.server.shared)
    made.next_stage()
    for number in (1, 2):
        made.round(number)
    return {client: strip(arrays, "local/") for client, arrays in made.finish().items()}, shared


def test_ditto_is_finetuning_pulled_to_where_it_starts(federation):
    plain, start = finetuned(federation("fedavg-finetune"))
    none, _ = finetuned(federation("ditto", "training.proximal=0"))
    assert all(same(plain[client], none[client]) for client in plain)
    some, also = finetuned(federation("ditto", "training.proximal=1"))
    much, _ = finetuned(federation("ditto", "training.proximal=100"))
    assert same(start, also), "the term reached the global expert"
    for client in plain:
        assert (
            distance(start, plain[client]) > distance(start, some[client]) > distance(start, much[client]) > 0
        )


def test_ditto_is_pulled_to_one_place_in_all_rounds(federation, monkeypatch):
    plans = []
    monkeypatch.setattr(
        "fedms.federation.exchanges.local_training.train_expert",
        lambda *given: plans.append(given[2]) or train_expert(*given),
    )
    _, start = finetuned(federation("ditto", "training.proximal=1"))
    local = [plan for plan in plans if plan.proximal]
    assert len(local) == 8 and not any(plan.anchor for plan in plans[:-8])
    assert all(
        torch.equal(plan.anchor[name], start[name])
        for plan in local
        for name in start
        if name.startswith("block.")
    )


# FFA-LoRA, FedEx-LoRA, FlexLoRA


def test_ffa_lora_keeps_the_drawn_a_which_never_travels(federation):
    made = federation("ffa-lora")
    for number in (1, 2):
        made.round(number)
    models = made.finish()
    assert not [name for name in made.sent_up() | made.sent_down() if "lora_A" in name]
    drawn = fresh_lora(made.world.backbone, range(3), 2, made.world.config.seed)
    for arrays in models.values():
        kept = {name: array for name, array in strip(arrays, "global/").items() if group(name) == "A"}
        assert same(kept, {name: array for name, array in drawn.items() if group(name) == "A"})
        assert (
            torch.equal(arrays[f"global/{KEY}.lora_B"], made.server.frozen[f"{KEY}.lora_B"])
            and arrays[f"global/{KEY}.lora_B"].any()
        )


def test_of_products_with_one_a_the_mean_is_the_product_of_the_means(federation):
    for method, exact in (("ffa-lora", True), ("fedavg", False)):
        made = federation(method)
        made.round(1)
        drawn = fresh_lora(made.world.backbone, [1], 2, made.world.config.seed)
        updates = list(made.round(2).values())
        wanted = mean(updates, lambda arrays, drawn=drawn: product(drawn | arrays))
        assert torch.allclose(product(drawn | made.server.shared), wanted, atol=1e-8) == exact


def test_fedex_lora_loses_nothing_of_the_mean_product_where_fedavg_does(federation):
    errors = {}
    for method in ("fedex-lora", "fedavg"):
        made = federation(method)
        made.round(1)
        held = made.server.shared.get(f"{KEY}.residual", torch.zeros(32, 32)).double()
        scale = made.world.config.lora.alpha / 2
        updates = list(made.round(2).values())
        wanted = held + scale * mean(updates, product)
        found = made.server.shared.get(f"{KEY}.residual", torch.zeros(32, 32)) + scale * product(
            made.server.shared
        )
        errors[method] = float((found - wanted).norm() / wanted.norm())
        assert all("residual" not in name for name in made.sent_up())
    assert errors["fedex-lora"] < 1e-6 < 1e-3 < errors["fedavg"]


def test_a_flexlora_client_has_its_own_rank_of_the_best_there_is(federation):
    made = federation("flexlora", "lora.tiers=[{share: 0.5, rank: 1}, {share: 0.5, rank: 2}]")
    ranks = made.world.ranks
    assert sorted(ranks.values()) == [1, 1, 2, 2]
    first = made.round(1)
    for client, update in first.items():
        assert update.arrays[f"{KEY}.lora_A"].shape == (ranks[client], 32) and update.arrays[
            f"{KEY}.lora_B"
        ].shape == (32, ranks[client])
    wanted, shared = mean(first.values(), product), dict(made.server.shared)
    U, S, Vt = torch.linalg.svd(wanted)
    made.round(2)
    for task, _ in made.exchanges[-4:]:
        rank = ranks[task.client]
        assert torch.equal(task.arrays[f"{KEY}.lora_A"], shared[f"{KEY}.lora_A"][:rank])
        torch.testing.assert_close(product(task.arrays), U[:, :rank] * S[:rank] @ Vt[:rank], **CLOSE)
    for client, arrays in made.finish().items():
        assert arrays[f"global/{KEY}.lora_A"].shape[0] == ranks[client]


def test_flexlora_with_one_client_is_that_client(federation):
    made = federation("flexlora")
    (update,) = made.round(1, ["client-2"]).values()
    torch.testing.assert_close(product(made.server.shared), product(update.arrays), **CLOSE)


@pytest.mark.parametrize("method", ["ffa-lora", "fedsa-lora", "fedalt"])
def test_what_averages_a_and_b_apart_takes_one_rank_alone(settings, method):
    config = settings(
        "federation.aggregation=svd", "lora.tiers=[{share: 0.5, rank: 1}, {share: 0.5, rank: 2}]"
    )
    with pytest.raises(ConfigError, match=f"lora.tiers: method {method}"):
        METHODS[method].configure(config)


def test_feddpa_blends_no_residual_with_none(settings):
    assert METHODS["feddpa"].configure(settings("federation.aggregation=exact"))
    with pytest.raises(ConfigError, match="must be `global` with federation"):
        METHODS["feddpa"].configure(settings("federation.aggregation=exact", "mixture.local_start=scratch"))


# FedSA-LoRA, FedPer, FedRep


def test_fedsa_lora_shares_a_and_nothing_else(federation):
    made = federation("fedsa-lora")
    for number in (1, 2):
        made.round(number)
    assert {name.rpartition("_")[2] for name in made.sent_up()} == {"A"}
    assert not [name for name in made.sent_down() if name.endswith("lora_B")]
    models = list(made.finish().values())
    for name, array in models[0].items():
        if name.startswith("local/block."):
            equal = all(torch.equal(array, other[name]) for other in models[1:])
            assert equal == name.endswith("lora_A"), name
    assert len({arrays["local/head.weight"].numpy().tobytes() for arrays in models}) == 4
    torch.testing.assert_close(models[0][f"local/{KEY}.lora_A"], made.server.shared[f"{KEY}.lora_A"])


@pytest.mark.parametrize("method", ["fedper", "fedrep"])
def test_the_body_is_shared_and_each_head_stays(federation, method):
    made = federation(method)
    for number in (1, 2):
        made.round(number)
    models = list(made.finish().values())
    assert {group(name) for name in made.sent_up()} == {"A", "B"}
    trained = [task.arrays for task, _ in made.exchanges if task.kind == "train"]
    assert all({group(name) for name in arrays if "/" not in name} == {"A", "B"} for arrays in trained)
    heads = [arrays["global/head.weight"] for arrays in trained if "global/head.weight" in arrays]
    assert len(heads) == 4 and all(torch.equal(head, heads[0]) for head in heads), (
        "more than the common start came down"
    )
    assert len({arrays["local/head.weight"].numpy().tobytes() for arrays in models}) == 4
    assert all(
        torch.equal(arrays[f"local/{KEY}.lora_B"], made.server.shared[f"{KEY}.lora_B"]) for arrays in models
    )
    assert made.server.shared[f"{KEY}.lora_B"].any()


def moving(world, folder, monkeypatch, method, **training):
    """Which parameter groups each step of a round moves."""
    expert, names, runner, samples = trainee(world, folder)
    steps = []

    class Watched(torch.optim.AdamW):
        def step(self, closure=None):
            before = {name: expert.arrays[name].detach().clone() for name in names}
            super().step(closure)
            steps.append(
                "".join(
                    sorted(
                        {group(name) for name in names if not torch.equal(before[name], expert.arrays[name])}
                    )
                )
            )

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    plan = Plan(names, (0.01, 0.01), METHODS[method].stages[0].phases)
    train_expert(runner, expert, plan, samples, 0, TrainingConfig(**training), np.random.default_rng(0))
    return steps, len(samples)


@pytest.mark.parametrize("epochs", [1, 3])
def test_fedrep_moves_the_head_in_the_first_half_of_a_round_and_the_body_in_the_second(
    opened, tmp_path, monkeypatch, epochs
):
    steps, count = moving(
        opened("head.kind=text-init"), tmp_path, monkeypatch, "fedrep", batch_size=1, epochs=epochs
    )
    half = -(-count * epochs // 2)
    assert steps == ["head"] * half + ["AB"] * (count * epochs - half)


def test_fedper_moves_both_at_once_and_so_does_fedrep_where_there_is_but_one_step(
    opened, tmp_path, monkeypatch
):
    world = opened("head.kind=text-init")
    steps, count = moving(world, tmp_path, monkeypatch, "fedper", batch_size=1)
    assert steps == ["ABhead"] * count
    assert moving(world, tmp_path, monkeypatch, "fedrep", batch_size=99)[0] == ["ABhead"]


# FedALT


@pytest.mark.parametrize("capacity", ["[]", "[{share: 0.5, blocks: 1}, {share: 0.5, blocks: 3}]"])
@pytest.mark.parametrize(
    "last",
    [["client-0", "client-1", "client-2", "client-3"], ["client-0", "client-2", "client-3"], ["client-1"]],
)
def test_beside_a_fedalt_client_stands_the_mean_of_the_others_of_the_last_round(federation, last, capacity):
    made = federation("fedalt", f"activation.capacity={capacity}")
    latest = made.round(1)
    average = made.round(2, last)
    latest |= average
    models = made.finish()
    for client, arrays in models.items():
        own = strip(arrays, "local/")
        for name, array in latest[client].arrays.items():
            assert torch.equal(own[name], array), "the average overwrote what is the client's own"
        for name in (f"{KEY}.lora_A", "block.2.value.lora_B"):
            others = [
                update for other, update in average.items() if other != client and name in update.arrays
            ]
            if others:
                torch.testing.assert_close(
                    own[f"beside.{name}"], mean(others, lambda given, name=name: given[name]), **CLOSE
                )
            elif client in average and name in average[client].arrays:
                assert not own[f"beside.{name}"].any(), "alone, it stands beside itself"


def test_a_fedalt_client_subtracts_of_itself_what_arrived(federation):
    made = federation("fedalt", "federation.uplink=int4")
    world, server = made.world, made.server
    made.ask(TRAINING, server.clients, made.stage, 1)
    admission = Admission(server, world.classes, world.capacities)
    updates = [admission.admitted(task, update) for task, update in made.exchanges]
    server.aggregate(made.stage, 1, updates)
    for client, arrays in made.finish().items():
        others = [update for update in updates if update.client != client]
        name = f"{KEY}.lora_A"
        wanted = mean(others, lambda given, name=name: given[name])
        torch.testing.assert_close(arrays[f"local/beside.{name}"], wanted, **CLOSE)


def test_fedalt_keeps_its_mixers_which_train_from_one_half(federation):
    made = federation("fedalt")
    for number in (1, 2):
        made.round(number)
    models = list(made.finish().values())
    assert {group(name) for name in made.sent_up()} == {"A", "B"}
    assert not [name for name in made.sent_down() if "mixer" in name or "beside" in name]
    mixers = [arrays[f"local/mixer.{KEY}.weight"] for arrays in models]
    assert all(mixer.any() for mixer in mixers) and len({mixer.numpy().tobytes() for mixer in mixers}) == 4


def test_a_fresh_mixer_weighs_both_pairs_alike_and_a_trained_one_by_the_input(backbone, generator):
    linear = LoraLinear(nn.Linear(32, 32).requires_grad_(False))
    x, one, other = (torch.randn(shape, generator=generator) for shape in ((4, 5, 32), (32, 32), (32, 32)))
    fresh = fresh_parts(backbone, ("mixer",), [0], 0, 0)
    mixer = fresh["mixer.block.0.query.weight"], fresh["mixer.block.0.query.bias"]
    for bias in (0.0, 1.5):
        linear.pair = Pair(
            one, torch.eye(32), 0.5, beside=(other, torch.eye(32)), mixer=(mixer[0] + bias, mixer[1] + bias)
        )
        weight = torch.sigmoid(bias * x.sum(2, keepdim=True) + bias)
        wanted = linear.base(x) + 0.5 * (weight * (x @ one.T) + (1 - weight) * (x @ other.T))
        torch.testing.assert_close(linear(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["fedper", "fedalt"])
def test_where_b_alone_is_shared_all_have_the_drawn_a(federation, method):
    made = federation(method, "federation.aggregation=freeze-a")
    for number in (1, 2):
        made.round(number)
    drawn = fresh_lora(made.world.backbone, [1], 2, made.world.config.seed)[f"{KEY}.lora_A"]
    assert {group(name) for name in made.sent_up()} == {"B"}
    for arrays in made.finish().values():
        assert torch.equal(arrays[f"local/{KEY}.lora_A"], drawn)
        assert method == "fedper" or torch.equal(arrays[f"local/beside.{KEY}.lora_A"], drawn)


# SAL that never grows, FedCLIP, PromptFL, linear probe


def test_sal_fixed_never_has_more_blocks_than_at_the_start(settings):
    for method, most in (("sal-fixed", 1), ("fedavg-sal", 3)):
        config = METHODS[method].configure(settings("activation.rule=every", "activation.every=1"))
        activation = Activation(config.activation, 3)
        assert METHODS[method].stages[0].activation == "sal"
        for _ in range(9):
            activation.observe(0.5, 9)
        assert activation.active == most


def test_fedclip_trains_and_shares_its_attention_alone(federation):
    made = federation("fedclip")
    start = dict(made.server.frozen)
    for number in (1, 2):
        made.round(number)
    assert {group(name) for name in made.sent_up()} == {"attention"}
    for arrays in made.finish().values():
        learned = strip(arrays, "global/")
        assert {group(name) for name in learned} == {"attention", "head"}
        assert all(torch.equal(learned[name], start[name]) for name in start) and set(start) >= {
            "head.weight",
            "head.bias",
        }
        assert learned["attention.out.weight"].any()


def test_a_fresh_attention_changes_nothing(backbone, generator):
    head = nearest_head(torch.randn(3, 32, generator=generator))
    x = torch.randn(7, 32, generator=generator)
    fresh = fresh_parts(backbone, ("attention",), (), 0, 0)
    torch.testing.assert_close(
        Expert(head | fresh, 1.0).logits(x), Expert(head, 1.0).logits(x), atol=1e-4, rtol=1e-5
    )
    moved = fresh | {"attention.out.weight": torch.randn(32, 32, generator=generator)}
    assert not torch.allclose(Expert(head | moved, 1.0).logits(x), Expert(head, 1.0).logits(x), atol=1e-2)


def test_promptfl_trains_and_shares_prompts_and_head_alone(federation):
    made = federation("promptfl")
    before = made.server.shared["prompt.tokens"].clone()
    made.round(1)
    assert made.sent_up() == {"prompt.tokens", "head.weight", "head.bias"}
    assert before.shape == (8, 32) and not torch.allclose(made.server.shared["prompt.tokens"], before)
    assert {group(name) for arrays in made.finish().values() for name in strip(arrays, "global/")} == {
        "prompt",
        "head",
    }


def test_a_linear_probe_is_logistic_regression_on_frozen_features(federation):
    made = federation("linear-probe", "training.epochs=2")
    start = {name: array.clone() for name, array in made.server.shared.items()}
    for client in made.server.clients:  # fills the cache, as the validation of a start would
        made.host.runner.outputs(None, made.world.samples(client, "train"), made.world.backbone.depth)
    updates = made.round(1)
    assert made.sent_up() == {"head.weight", "head.bias"}
    assert all(update.metrics["flops"] == 0 for update in updates.values()), "a block was run"
    client, samples = "client-1", made.world.samples("client-1", "train")
    x = made.host.runner.outputs(None, samples, 3).features
    weight, bias = (nn.Parameter(start[f"head.{name}"].clone()) for name in ("weight", "bias"))
    optimizer = torch.optim.AdamW([weight, bias], lr=0.01, weight_decay=0.0)
    order = seeds.numpy_generator(made.world.config.seed, "batches", "global", 1, client)
    for _ in range(2):
        for picks in batches(made.world.inputs.lengths(samples.rows), 2, order):
            optimizer.zero_grad()
            F.cross_entropy(F.linear(x[picks], weight, bias), samples.labels[picks]).backward()
            optimizer.step()
    torch.testing.assert_close(updates[client].arrays["head.weight"], weight.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(updates[client].arrays["head.bias"], bias.detach(), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(weight, start["head.weight"], atol=1e-3), "nothing was trained"


# PFL-MoE


def test_pfl_moe_keeps_expert_and_gate_to_itself(federation):
    made = federation("pfl-moe")
    made.round(1)
    made.next_stage()
    for number in (1, 2):
        assert all(not update.arrays for update in made.round(number).values())
    for arrays in made.finish().values():
        assert arrays["gate.network.out.weight"].any() and arrays["gate.adapter.up"].any()
    assert not [name for name in made.sent_down() if "gate" in name or name.startswith("local/")]
