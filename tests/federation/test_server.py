"""The server: whom it asks, what it sends, and how its state grows."""

import pytest
import torch

from fedms.federation.client import ClientHost
from fedms.federation.exchanges import EXCHANGES, WEIGHTS
from fedms.federation.exchanges.selection import Selection
from fedms.federation.messages import Task, Update, decode_task, decode_update, encode
from fedms.federation.methods import METHODS
from fedms.federation.personal_model import UNSCALED
from fedms.federation.prediction import PRIORS, SCALES, scale_at
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.model.arrays import block_of
from fedms.model.heads import statistics_head
from fedms.model.statistics import FeatureSums

CLIENTS = [f"client-{number:02d}" for number in range(30)]


@pytest.fixture
def server(settings, backbone):
    """A server of thirty clients that asks seven, for a method."""

    def make(method="fedms", *overrides, clients=CLIENTS):
        config = settings(
            "partition.clients=30", "federation.cohort=7", "head.kind=linear", f"method={method}", *overrides
        )
        return Server(
            recipe_for(config, METHODS[method]), backbone, clients, dict.fromkeys(clients, config.lora.rank)
        )

    return make


def begun(server: Server) -> Server:
    server.start_head(3, None)
    server.begin(server.method.stages[0])
    return server


def cohorts(server: Server, stage: int = 0) -> list[list[str]]:
    return [server.sampling.cohort(server.method.stages[stage], number) for number in range(1, 6)]


# who is asked


def test_a_cohort_is_derived_from_the_seed_and_the_round(server):
    first = cohorts(server())
    assert first == cohorts(server())
    assert first == cohorts(server(clients=CLIENTS[::-1])), (
        "it depends on the order in which clients are named"
    )
    assert first != cohorts(server("fedms", "seed=1"))
    assert len({tuple(cohort) for cohort in first}) == 5
    assert all(len(set(cohort)) == 7 and set(cohort) <= set(CLIENTS) for cohort in first)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.stages])
def test_methods_of_one_budget_ask_the_same_clients(server, method):
    assert cohorts(server(method)) == cohorts(server("fedms"))


def test_the_local_stage_asks_everybody_or_a_cohort_of_its_own(server):
    assert cohorts(server(), 1) == [CLIENTS] * 5
    some = cohorts(server("fedms", "federation.cohort_local=3"), 1)
    assert {len(cohort) for cohort in some} == {3} and len(set(map(tuple, some))) == 5


def test_who_is_asked_beside_the_cohort_is_drawn_from_all_others(server):
    made = server()
    stage = made.method.stages[0]
    drawn = [made.sampling.others(stage, number) for number in range(1, 6)]
    assert drawn == [server(clients=CLIENTS[::-1]).sampling.others(stage, number) for number in range(1, 6)]
    for cohort, others in zip(cohorts(made), drawn, strict=True):
        assert sorted(cohort + others) == CLIENTS
        assert others != sorted(others), "names that come first would be asked more often"
    assert made.sampling.others(made.method.stages[1], 1) == []


def test_rounds_are_those_of_the_stages_budget(server):
    made = server("local", "federation.rounds_global=4", "federation.rounds_local=2")
    assert [made.recipe.rounds(stage) for stage in made.method.stages] == [4, 2]


# what is sent


def test_the_frozen_global_expert_reaches_each_client_once(server):
    made = begun(server())
    early = {
        name
        for task in made.tasks(EXCHANGES["train"], CLIENTS, made.method.stages[0], 1)
        for name in task.arrays
        if "/" in name
    }
    assert early == {"global/head.log_scale"}, "which nobody trains"
    trained = dict(made.shared)
    made.record_delivery([], [Update(client) for client in CLIENTS])
    made.begin(made.method.stages[1])

    def sent(clients):
        tasks = made.tasks(EXCHANGES["train"], clients, made.method.stages[1], 1)
        made.record_delivery(
            tasks, [Update(client) for client in clients if client != "client-01"]
        )  # which fails the first time
        return {
            task.client: {name: array for name, array in task.arrays.items() if name.startswith("global/")}
            for task in tasks
        }

    first = sent(CLIENTS[:2])
    assert all(
        arrays.keys() == {f"global/{name}" for name in (*trained, "head.log_scale")}
        for arrays in first.values()
    )
    assert all(torch.equal(first["client-00"][f"global/{name}"], trained[name]) for name in trained)
    second = sent(CLIENTS[:3])
    assert {client: bool(arrays) for client, arrays in second.items()} == {
        "client-00": False,
        "client-01": True,
        "client-02": True,
    }


def test_the_gate_adapter_starts_the_same_for_all_and_changes_nothing(server):
    made = begun(server())
    made.begin(made.method.stages[1])
    assert set(made.shared) == {"gate.adapter.down", "gate.adapter.up"}
    assert made.shared["gate.adapter.down"].any() and not made.shared["gate.adapter.up"].any()


# growth


def test_growing_adds_pairs_that_change_nothing_and_leaves_the_rest(server):
    made = begun(server("fedms", "activation.rule=every", "activation.every=1"))
    for array in made.shared.values():
        array.add_(1.0)
    before = {name: array.clone() for name, array in made.shared.items()}
    assert made.observe(made.method.stages[0], 1, 0.5)
    added = made.shared.keys() - before.keys()
    assert {block_of(name) for name in added} == {1} and {block_of(name) for name in before} == {2, None}
    assert all(torch.equal(made.shared[name], before[name]) for name in before)
    assert all(made.shared[name].any() == name.endswith("lora_A") for name in added)


@pytest.mark.parametrize(("method", "stage"), [("fedavg", 0), ("fedms", 1)])
def test_only_a_sparse_global_stage_grows(server, method, stage):
    made = begun(server(method, "activation.rule=every", "activation.every=1"))
    for before in made.method.stages[1 : stage + 1]:
        made.begin(before)
    assert not made.observe(made.method.stages[stage], 1, 0.5)
    assert made.activation.active == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_rederived_head_alone_is_sent_again(server, share):
    made = begun(server())
    made.begin(made.method.stages[1])
    made.record_delivery([], [Update(client) for client in CLIENTS[:1]])
    before = {name: array.clone() for name, array in made.frozen.items()}
    x = torch.randn(30, made.backbone.feature_size, generator=torch.Generator().manual_seed(0))
    discriminant = FeatureSums.of(x, torch.arange(30) % 3, 3).discriminant()
    made.learn(discriminant)
    made.rederive_head(share)
    derived = statistics_head(discriminant)
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(made.frozen[name], torch.lerp(before[name], derived[name], share))
    tasks = made.tasks(EXCHANGES["train"], CLIENTS[:2], made.method.stages[1], 1)
    sent = [{name for name in task.arrays if name.startswith("global/")} for task in tasks]
    heads = {f"global/head.{name}" for name in ("weight", "bias", "log_scale")}
    assert sent == [heads if share else set(), {f"global/{name}" for name in before}]


def test_a_restored_server_is_the_same(server):
    made = begun(server("fedms", "activation.rule=every", "activation.every=1"))
    made.observe(made.method.stages[0], 1, 0.5)
    made.begin(made.method.stages[1])
    made.record_delivery([], [Update(client) for client in CLIENTS[:4]])
    other = server()
    other.restore(*made.checkpoint())
    (arrays, meta), (again, same) = made.checkpoint(), other.checkpoint()
    assert meta == same and meta["delivered"] == dict.fromkeys(CLIENTS[:4], made.edition)
    assert arrays.keys() == again.keys() and all(torch.equal(arrays[name], again[name]) for name in arrays)


def test_the_constant_weight_is_the_likeliest_on_all_validation_data(server):
    made = server("mixture-constant")
    peak = [
        torch.zeros(11).index_fill_(0, torch.tensor([at]), height)
        for at, height in ((2, 1.0), (7, 3.0), (2, 1.5))
    ]
    updates = [Update(f"client-{i}", {"weigh.log_likelihood": array}, 1) for i, array in enumerate(peak)]
    assert WEIGHTS.result(updates, made.recipe).applied(Selection.before(made.recipe)).prior == 0.7


# with real clients


def asked(server: Server, host: ClientHost, number: int) -> tuple[list[Task], list[Update]]:
    """One round of the first stage, everything through bytes."""
    stage = server.method.stages[0]
    tasks = [
        decode_task(encode(task))
        for task in server.tasks(EXCHANGES["train"], server.clients, stage, number, arrays=server.shared)
    ]
    return tasks, [decode_update(encode(host.handle(task))) for task in tasks]


@pytest.mark.parametrize(
    ("order", "active"), [("top-down", [{2}, {1, 2}, {0, 1, 2}]), ("bottom-up", [{0}, {0, 1}, {0, 1, 2}])]
)
def test_inactive_blocks_are_in_no_task_and_in_no_update(opened, tmp_path, order, active):
    rule = ("activation.rule=every", "activation.every=1", f"activation.order={order}")
    world = opened("method=fedavg-sal", "head.kind=linear", *rule)
    server = Server(
        recipe_for(world.config, METHODS["fedavg-sal"]), world.backbone, list(world.clients), world.ranks
    )
    server.start_head(world.classes, None)
    server.begin(server.method.stages[0])
    host = ClientHost(world, tmp_path)
    for number, blocks in enumerate(active, 1):
        tasks, updates = asked(server, host, number)
        messages: list[Task | Update] = [*tasks, *updates]
        for message in messages:
            assert {block_of(name) for name in message.arrays} - {None} == blocks
            assert {"head.weight", "head.bias"} <= message.arrays.keys()
        server.aggregate(server.method.stages[0], 1, updates)
        server.observe(server.method.stages[0], number, None)


def test_training_moves_what_is_active_and_nothing_that_is_frozen(opened, tmp_path):
    world = opened("method=fedavg-sal", "head.kind=linear", "activation.rule=fixed", "activation.blocks=2")
    server = Server(
        recipe_for(world.config, METHODS["fedavg-sal"]), world.backbone, list(world.clients), world.ranks
    )
    server.start_head(world.classes, None)
    server.begin(server.method.stages[0])
    weights = {name: array.clone() for name, array in world.backbone.state_dict().items()}
    before = server.shared
    host = ClientHost(world, tmp_path)
    for number in (1, 2, 3):  # from a zero head: first the head moves, then B, then A
        _, updates = asked(server, host, number)
        assert all(update.weight == len(world.samples(update.client, "train")) for update in updates)
        server.aggregate(server.method.stages[0], 1, updates)
    moved = {name for name in before if not torch.equal(before[name], server.shared[name])}
    assert moved == before.keys() - {"head.log_scale"}
    after = world.backbone.state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights)


def test_a_weak_client_trains_the_top_blocks_alone_and_the_mean_is_over_those_that_did(opened, tmp_path):
    tiers = "activation.capacity=[{share: 0.5, blocks: 1}, {share: 0.5, blocks: 3}]"
    world = opened("method=fedavg-sal", "head.kind=linear", "activation.blocks=3", tiers)
    server = Server(
        recipe_for(world.config, METHODS["fedavg-sal"]), world.backbone, list(world.clients), world.ranks
    )
    server.start_head(world.classes, None)
    server.begin(server.method.stages[0])
    _, updates = asked(server, ClientHost(world, tmp_path), 1)
    sent = {update.client: {block_of(name) for name in update.arrays} - {None} for update in updates}
    assert sent == {
        client: {2} if capacity == 1 else {0, 1, 2} for client, capacity in world.capacities.items()
    }
    strong = [update for update in updates if world.capacities[update.client] == 3]
    server.aggregate(server.method.stages[0], 1, updates)
    weights = torch.tensor([update.weight for update in strong])
    name = "block.0.query.lora_B"
    wanted = sum(
        weight * update.arrays[name] for weight, update in zip(weights / weights.sum(), strong, strict=True)
    )
    torch.testing.assert_close(server.shared[name], wanted)


# the gate's evidence


def test_each_prior_has_the_scale_that_all_validation_data_like_best(server):
    made = server()
    wanted = [SCALES[(3 * place) % len(SCALES)] for place in range(len(UNSCALED))]
    likelihood = torch.full((len(UNSCALED), len(SCALES)), -9.0)
    for place, scale in enumerate(wanted):
        likelihood[place, SCALES.index(scale)] = -2.0
    loud = torch.full_like(likelihood, -1.0)  # a client to which all are alike decides nothing
    updates = [
        Update("client-00", {"weigh.log_likelihood": each.flatten()}, weight=4.0)
        for each in (likelihood, loud)
    ]
    selection = WEIGHTS.result(updates, made.recipe).applied(Selection.before(made.recipe))
    assert selection.evidence_scales == tuple(wanted) and selection.prior == made.config.gate.prior


def test_a_checkpoint_holds_nothing_that_is_chosen_after_the_last_one(server):
    _, meta = server().checkpoint()
    assert meta.keys().isdisjoint({"prior", "interpolation", "evidence_scales"})


def test_the_scale_of_any_prior_lies_between_its_neighbours():
    scales = [float(place) for place in range(len(UNSCALED))]
    assert [scale_at(scales, prior) for prior in PRIORS[1:-1]] == pytest.approx(scales)
    assert scale_at(scales, 0.55) == pytest.approx((scales[4] + scales[5]) / 2)
    assert (scale_at(scales, 0.01), scale_at(scales, 0.99)) == (scales[0], scales[-1])
