"""Clients in a stack reach the results of training alone, within a tolerance, and fail separately."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedms.federation import together
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import EXCHANGES
from fedms.federation.methods import METHODS
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.together import handle_together
from fedms.federation.world import open_world
from fedms.model.batched import Stack
from fedms.model.expert import Expert
from fedms.model.heads import zero_head
from fedms.model.parts import fresh_lora, trained_names
from fedms.training.batched import Member, train_stack
from fedms.training.expert_training import Plan, train_expert
from fedms.training.runner import Cost
from tiny_run import run_config, write_pictures

RATE = 0.01
"""Learning rate of the tests"""
TOLERANCE = RATE / 20
"""Of an array after a round; docs/performance.md gives the largest difference."""


@pytest.fixture
def stacks(monkeypatch) -> list[int]:
    """How many members each stack that was trained had."""
    sizes: list[int] = []
    good = together.train_stack

    def train(runner, members, *more):
        sizes.append(len(members))
        good(runner, members, *more)

    monkeypatch.setattr(together, "train_stack", train)
    return sizes


def tasks_of(made, number=1):
    return made.server.tasks(EXCHANGES["train"], made.server.clients, made.stage, number, made.server.shared)


def both(world, tasks, folder: Path):
    """The answers of clients one at a time, and together, from copies of the same files."""
    before = folder / "clients"
    other = folder.parent / f"{folder.name}-together"
    if before.is_dir():
        shutil.copytree(before, other / "clients")
    alone = [ClientHost(world, folder).handle(task) for task in tasks]
    return alone, handle_together(ClientHost(world, other), tasks)


def check(alone, stacked, tolerance=TOLERANCE):
    for one, other in zip(alone, stacked, strict=True):
        assert not isinstance(other, Exception), other
        assert (one.client, one.weight, one.arrays.keys()) == (
            other.client,
            other.weight,
            other.arrays.keys(),
        )
        for name, array in one.arrays.items():
            torch.testing.assert_close(other.arrays[name], array, atol=tolerance, rtol=0)
        assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], abs=min(tolerance, 1e-4))
        assert {key: other.metrics[key] for key in ("flops", "once")} == {
            key: one.metrics[key] for key in ("flops", "once")
        }


CAPACITY = "activation.capacity=[{share: 0.5, blocks: 1}, {share: 0.5, blocks: 3}]"
RANKS = "lora.tiers=[{share: 0.5, rank: 1}, {share: 0.5, rank: 2}]"


@pytest.mark.parametrize(
    ("method", "overrides", "sizes"),
    [
        ("fedavg", ("training.epochs=2", "training.batch_size=3"), [4]),
        ("fedavg", ("training.weight_decay=0.1", "cache.enabled=false"), [4]),
        ("fedprox", ("training.proximal=5.0",), [4]),
        ("sal-fixed", (), [4]),
        ("fedavg", (CAPACITY,), [2, 2]),
        ("flexlora", (RANKS,), [2, 2]),
        ("linear-probe", (), [4]),
    ],
)
def test_together_is_alone_within_the_tolerance(federation, stacks, tmp_path, method, overrides, sizes):
    made = federation(method, *overrides)
    counts = {len(made.world.samples(client, "train")) for client in made.server.clients}
    assert len(counts) > 1, "clients have unlike numbers of steps"
    alone, stacked = both(made.world, tasks_of(made), tmp_path / "one")
    assert stacks == sizes
    check(alone, stacked)
    moved = max(
        float((update.arrays["head.bias"] - made.server.shared["head.bias"]).abs().max()) for update in alone
    )
    assert moved > RATE > 10 * TOLERANCE, "training goes far beyond the tolerance"


def test_a_local_stage_is_alone_within_the_tolerance_and_keeps_its_state(federation, stacks, tmp_path):
    made = federation("ditto")
    made.round(1)
    made.next_stage()
    alone, stacked = both(made.world, tasks_of(made), made.folder)
    assert stacks == [4]
    check(alone, stacked)
    for client in made.server.clients:
        kept = [
            folder / "clients" / client
            for folder in (made.folder, made.folder.parent / f"{made.folder.name}-together")
        ]
        assert len({tuple(sorted(path.name for path in folder.iterdir())) for folder in kept}) == 1
    assert [update.metrics["correct"] for update in alone] == [
        update.metrics["correct"] for update in stacked
    ]


def test_images_together_are_images_alone_within_the_tolerance(checkpoint, stacks, tmp_path):
    write_pictures(tmp_path / "pictures")
    model = Path(shutil.copytree(checkpoint("vit"), tmp_path / "model"))
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (model / "preprocessor_config.json").write_text(json.dumps(processor))
    config = run_config(
        model, tmp_path / "pictures", method="fedavg", head__kind="linear", training__batch_size=3
    )
    world = open_world(config)
    server = Server(recipe_for(config, METHODS["fedavg"]), world.backbone, list(world.clients), world.ranks)
    server.start_head(world.classes, None)
    server.begin(server.method.stages[0])
    tasks = server.tasks(EXCHANGES["train"], server.clients, server.method.stages[0], 1, server.shared)
    alone, stacked = both(world, tasks, tmp_path / "one")
    assert stacks == [3]
    check(alone, stacked)


def test_in_double_precision_together_is_alone_to_many_digits(settings, tmp_path):
    """So differences in single precision are roundings, not other steps or samples."""
    world = open_world(settings("training.batch_size=3", "training.epochs=3", "head.kind=linear"))
    world.backbone.to_device("cpu", torch.float64)
    runner = ClientHost(world, tmp_path).runner
    blocks = range(world.backbone.depth)
    arrays = fresh_lora(world.backbone, blocks, 2, 0) | zero_head(world.classes, world.backbone.feature_size)
    arrays = {name: array.double() for name, array in arrays.items()}
    plan = Plan(trained_names(world.backbone, ("A", "B", "head"), blocks, "linear"), (RATE, RATE))
    samples = [world.samples(client, "train") for client in world.clients]

    def members() -> list[Member]:
        return [Member(Expert(arrays, 1.0), plan, own, np.random.default_rng(0), Cost()) for own in samples]

    alone, stacked = members(), members()
    for each in alone:
        each.loss = train_expert(
            runner, each.expert, plan, each.samples, 0, world.config.training, each.order
        )
    train_stack(runner, stacked, 0, world.config.training)
    for one, other in zip(alone, stacked, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-6)
        for name in plan.names:
            assert float((one.expert.arrays[name] - arrays[name]).abs().max()) > RATE, "it has trained"
            torch.testing.assert_close(other.expert.arrays[name], one.expert.arrays[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["fedrep", "fedalt", "promptfl", "fedclip"])
def test_what_cannot_be_stacked_is_done_one_at_a_time_bit_for_bit(federation, stacks, tmp_path, method):
    made = federation(method)
    alone, stacked = both(made.world, tasks_of(made), tmp_path / "one")
    assert stacks == []
    check(alone, stacked, 0)


def test_who_leaves_a_stack_takes_the_others_nothing(backbone):
    """Their arrays, the optimizer's state and its number of steps stay."""
    blocks = range(backbone.depth)
    made = [
        Expert(fresh_lora(backbone, blocks, 2, seed) | zero_head(3, backbone.feature_size), 1.0)
        for seed in range(3)
    ]
    stack = Stack(made)
    leaf = stack.train(["head.weight"])[0]
    optimizer = torch.optim.AdamW([leaf], lr=0.1, fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        (stack.arrays["head.weight"] * torch.arange(1.0, 4)[:, None, None]).square().sum().add(
            stack.arrays["head.weight"].sum()
        ).backward()
        optimizer.step()
    weight, gathered = (
        stack.arrays["head.weight"].detach().clone(),
        {key: value.clone() for key, value in optimizer.state[leaf].items()},
    )
    stack.keep(2, optimizer)
    assert len(stack) == 2 and torch.equal(stack.arrays["head.weight"], weight[:2])
    (kept,) = optimizer.param_groups[0]["params"]
    assert (
        kept is stack.arrays["head.weight"]
        and kept.requires_grad
        and not stack.arrays["head.bias"].requires_grad
    )
    state = optimizer.state[kept]
    assert float(state["step"]) == 2 and len(optimizer.state) == 1
    assert all(torch.equal(state[key], gathered[key][:2]) for key in ("exp_avg", "exp_avg_sq"))


# failures


def test_a_loss_that_is_not_finite_is_one_clients_alone(federation, stacks, tmp_path):
    made = federation("fedavg")
    tasks = tasks_of(made)
    tasks[1].arrays["head.bias"] = torch.full_like(tasks[1].arrays["head.bias"], float("nan"))
    alone, stacked = both(made.world, [task for task in tasks if task is not tasks[1]], tmp_path / "one")
    stacked = handle_together(ClientHost(made.world, tmp_path / "four"), tasks)
    assert stacks == [3, 4]
    assert "training diverged" in str(stacked.pop(1))
    check(alone, stacked)


def test_a_damaged_file_is_one_clients_alone(federation, stacks, tmp_path):
    made = federation("ditto")
    made.round(1)
    made.next_stage()
    made.round(1)
    broken = made.server.clients[2]
    for path in (made.folder / "clients" / broken).glob("state-*"):
        path.write_bytes(b"no arrays")
    outcomes = handle_together(ClientHost(made.world, made.folder), tasks_of(made, 2))
    assert stacks == [3]
    assert [isinstance(each, Exception) for each in outcomes] == [
        client == broken for client in made.server.clients
    ]


def test_a_stack_that_fails_as_a_whole_is_done_one_at_a_time(federation, monkeypatch, tmp_path):
    def train(*given):
        raise MemoryError

    made = federation("fedavg")
    monkeypatch.setattr(together, "train_stack", train)
    alone, stacked = both(made.world, tasks_of(made), tmp_path / "one")
    check(alone, stacked, 0)
