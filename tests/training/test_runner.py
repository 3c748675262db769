"""Outputs of frozen experts are kept within a budget, and are the same when they are computed again."""

from pathlib import Path

import pytest
import torch

from fedms.model.expert import Expert
from fedms.model.heads import zero_head
from fedms.model.parts import fresh_lora
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import HELD_PER_OWNER, Runner


def test_what_was_not_used_for_longest_makes_room(opened):
    world = opened()
    owned = [world.samples(client, "train") for client in world.clients]
    one = len(owned[0]) * world.backbone.feature_size * 4
    assert all(len(each) * world.backbone.feature_size * 4 <= 2 * one for each in owned)

    def compute(budget: int) -> Runner:
        return Runner(
            world.backbone, PrefixCache(world.backbone, world.inputs, 0, 0, Path(), enabled=False), budget
        )

    ample, narrow = compute(2**30), compute(2 * one)
    depth = world.backbone.depth
    for each in (*owned, owned[0]):
        expected = ample.frozen_outputs("backbone", None, each, depth).features
        assert torch.equal(narrow.frozen_outputs("backbone", None, each, depth).features, expected)
        assert narrow._held_bytes == held_bytes(narrow) <= 2 * one
    assert len(ample._held) == len(owned) > len(narrow._held) >= 1

    # used again, outputs cost nothing if they are kept; else they are computed again, at the same booked cost
    held, gone = ample, narrow
    last, first = owned[0], owned[1]
    for each in (held, gone):
        each.begin()
    held.frozen_outputs("backbone", None, first, depth)
    gone.frozen_outputs("backbone", None, first, depth)
    assert held.once == gone.once and held.flops == gone.flops == 0
    gone.frozen_outputs("backbone", None, last, depth)
    assert list(gone._held) == [first.owner, last.owner] or len(gone._held) == 1


def held_bytes(runner: Runner) -> int:
    return sum(held.bytes for each in runner._held.values() for held in each.values())


@pytest.fixture
def runner(opened) -> Runner:
    world = opened()
    return Runner(world.backbone, PrefixCache(world.backbone, world.inputs, 2**30, 0, Path()), 2**30)


@pytest.fixture
def passes(runner, monkeypatch):
    """The boundaries of all passes over the blocks."""
    made, run = [], runner.backbone.run
    monkeypatch.setattr(
        runner.backbone, "run", lambda hidden, mask, *ends: (made.append(ends), run(hidden, mask, *ends))[1]
    )
    return made


def expert(world, seed: int = 0) -> Expert:
    arrays = fresh_lora(world.backbone, [world.backbone.depth - 1], 2, seed)
    return Expert({name: array + 0.1 for name, array in arrays.items()} | head(world), 1.0)


def head(world):
    return zero_head(world.classes, world.backbone.feature_size)


def test_the_same_pairs_run_once_whatever_the_head_and_cost_what_they_would_have_cost(opened, runner, passes):
    world = opened()
    samples, boundary = world.samples("client-0", "train"), world.backbone.depth - 1
    one = expert(world)
    other = Expert(one.arrays | {"head.bias": torch.arange(world.classes).float()}, 1.0)
    costs, found = [], []
    for each in (one, other):
        runner.begin()
        found.append(runner.outputs(each, samples, boundary))
        costs.append((runner.flops, runner.once))
    assert costs[0] == costs[1] and costs[0][0] > 0
    made = len(passes)
    assert torch.equal(found[0].features, found[1].features)
    assert torch.equal(found[1].logits, other.logits(found[1].features))
    runner.outputs(expert(world, seed=1), samples, boundary)
    assert len(passes) > made, "other pairs have other features"
    assert torch.equal(runner.outputs(one, samples, boundary).features, found[0].features)


def test_features_of_an_owner_are_kept_for_a_few_experts_only(opened, runner):
    world = opened()
    samples, boundary = world.samples("client-0", "train"), world.backbone.depth - 1
    for seed in range(2 * HELD_PER_OWNER):
        runner.outputs(expert(world, seed), samples, boundary)
    assert len(runner._held[samples.owner]) == HELD_PER_OWNER
    assert runner._held_bytes == held_bytes(runner)


def test_a_local_expert_that_never_trained_costs_no_pass_in_the_end(federation):
    """It has the global expert's pairs: its logits come from the same features."""
    made = federation("fedavg-finetune")
    made.round(1)
    made.next_stage()
    trained = made.server.clients[0]
    made.round(1, [trained])
    made.finish()
    spent = {task.client: update.metrics for task, update in made.exchanges if task.kind == "test"}
    for client, metrics in spent.items():
        assert (metrics["flops"] > 0) == (client == trained), client
