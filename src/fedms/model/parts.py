"""The parts of an expert beside its head: which arrays train, and how they begin."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch

from fedms.core import seeds
from fedms.model.arrays import Arrays
from fedms.model.backbone import Backbone
from fedms.model.heads import head_names


def trained_names(
    backbone: Backbone, groups: Iterable[str], blocks: Iterable[int], head_kind: str
) -> list[str]:
    """Names of the arrays of these parameter groups that train, with these blocks active."""
    groups, blocks = list(groups), sorted(blocks)
    stems = [f"block.{block}.{target}" for block in blocks for target in backbone.targets]
    names = [f"{stem}.lora_{matrix}" for stem in stems for matrix in "AB" if matrix in groups]
    if "mixer" in groups:
        names += [f"mixer.{stem}.{part}" for stem in stems for part in ("weight", "bias")]
    if "head" in groups:
        names += head_names(head_kind)
    if "prompt" in groups:
        names.append("prompt.tokens")
    if "attention" in groups:
        names += [f"attention.{layer}.{part}" for layer in ("in", "out") for part in ("weight", "bias")]
    return names


def fresh_parts(
    backbone: Backbone, groups: Iterable[str], blocks: Iterable[int], prompt_tokens: int, seed: int
) -> Arrays:
    """What these groups begin with beyond pairs and head: a mixer that weighs both pairs alike, an attention that changes
    nothing, a prompt of small random tokens."""
    arrays: Arrays = {}
    size = backbone.feature_size
    if "mixer" in groups:
        for block in sorted(blocks):
            for target in backbone.targets:
                stem = f"mixer.block.{block}.{target}"
                arrays |= {
                    f"{stem}.weight": torch.zeros(1, backbone.shape(target)[1]),
                    f"{stem}.bias": torch.zeros(1),
                }
    if "attention" in groups:
        bound = 1 / math.sqrt(size)
        weight = torch.empty(size, size).uniform_(
            -bound, bound, generator=seeds.torch_generator(seed, "attention")
        )
        arrays |= {"attention.in.weight": weight, "attention.in.bias": torch.zeros(size)}
        arrays |= {"attention.out.weight": torch.zeros(size, size), "attention.out.bias": torch.zeros(size)}
    if "prompt" in groups:
        generator = seeds.torch_generator(seed, "prompt")
        arrays["prompt.tokens"] = 0.02 * torch.randn(prompt_tokens, backbone.width, generator=generator)
    return arrays


def fresh_lora(
    backbone: Backbone,
    blocks: Iterable[int],
    rank: int,
    seed: int,
    *purpose: str | int,
    known: Collection[str] = (),
) -> Arrays:
    """New pairs for these blocks: A random (uniform, Kaiming), B zero, so that nothing changes at that moment.

    Each block's A depends on the seed and the block alone, not on when the block is activated. Layers of which A and B are `known`
    are left out.
    """
    arrays: Arrays = {}
    for block in sorted(blocks):
        for target in backbone.targets:
            A, B = (f"block.{block}.{target}.lora_{matrix}" for matrix in "AB")
            if A in known and B in known:
                continue
            outputs, inputs = backbone.shape(target)
            generator = seeds.torch_generator(seed, "lora", *purpose, block, target)
            bound = 1 / math.sqrt(inputs)
            arrays[A] = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
            arrays[B] = torch.zeros(outputs, rank)
    return arrays
