"""Outputs of frozen experts are kept within a budget, and are the same when they are computed again."""

from pathlib import Path

import torch

from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner


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
        assert narrow._held_bytes == sum(held.bytes for held in narrow._held.values()) <= 2 * one
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
    assert list(gone._held) == [("backbone", first.owner), ("backbone", last.owner)] or len(gone._held) == 1
