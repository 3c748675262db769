"""The parts of an expert: how each part names its arrays, starts them, and which learning rate trains them.

Each part is one class, registered in `PARTS`. A stage names the parameter groups that it trains and shares;
every group belongs to one part. A new part (IA3, DoRA) is one class with its own prefix and groups.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedms.core import seeds
from fedms.model import flops
from fedms.model.arrays import Arrays, block_of
from fedms.model.backbone import Backbone
from fedms.model.heads import zero_head

GATE = "gate"
"""The parameter group of the gate, which is no part of an expert (`model/gate.py`)."""


@dataclass(frozen=True)
class Scope:
    """What the names of an expert's arrays depend on."""

    backbone: Backbone
    groups: Collection[str]
    """Parameter groups of a stage"""
    blocks: tuple[int, ...]
    """Active blocks, in ascending order"""
    head_kind: str = "linear"
    """`head.kind` of the config"""

    @property
    def stems(self) -> list[str]:
        """`block.3.query` for every target of every active block."""
        return [f"block.{block}.{target}" for block in self.blocks for target in self.backbone.targets]


@dataclass(frozen=True)
class Start:
    """What the first values of an expert's arrays depend on, beside its scope."""

    seed: int
    purpose: tuple[str | int, ...] = ()
    """Further parts of the seed of LoRA pairs, such as a client's name"""
    rank: int = 0
    """Of LoRA pairs"""
    prompt_tokens: int = 0
    classes: int = 0
    known: Collection[str] = ()
    """Names of arrays that exist already"""


class Part(ABC):
    """One kind of arrays of an expert."""

    prefix: ClassVar[str]
    """How the names of its arrays begin, with the dot."""
    groups: ClassVar[tuple[str, ...]]
    """Its parameter groups."""
    rate: ClassVar[Literal["head", "body"]] = "body"
    """Which of the two learning rates trains it."""
    can_batch: ClassVar[bool] = False
    """Whether several clients' arrays can run as one batch (`model/batched.py`)."""

    @abstractmethod
    def names(self, scope: Scope) -> list[str]:
        """Names of the arrays that train, with only the groups of the scope."""

    @abstractmethod
    def fresh(self, scope: Scope, start: Start) -> Arrays:
        """All arrays of the part with their first values, on the CPU."""

    def group(self, name: str) -> str:
        """The parameter group of one of its arrays."""
        return self.groups[0]

    def block(self, name: str) -> int | None:
        """The block in which an array works; `flops.BELOW` for below all blocks, None for above them."""
        return block_of(name)


class Lora(Part):
    """The pairs A [r, in] and B [out, r] of all targets of the active blocks.

    A is random (uniform, Kaiming) and B is zero. A depends on the seed, the purpose, the block and the
    target alone, not on the round in which the block is activated. If A and B of a layer are known, both are
    left out.
    """

    prefix = "block."
    groups = ("A", "B")
    can_batch = True

    def names(self, scope: Scope) -> list[str]:
        matrices = [matrix for matrix in self.groups if matrix in scope.groups]
        return [f"{stem}.lora_{matrix}" for stem in scope.stems for matrix in matrices]

    def fresh(self, scope: Scope, start: Start) -> Arrays:
        arrays: Arrays = {}
        for block in scope.blocks:
            for target in scope.backbone.targets:
                A, B = (f"block.{block}.{target}.lora_{matrix}" for matrix in self.groups)
                if A in start.known and B in start.known:
                    continue
                outputs, inputs = scope.backbone.shape(target)
                generator = seeds.torch_generator(start.seed, "lora", *start.purpose, block, target)
                arrays[A] = _kaiming(start.rank, inputs, generator)
                arrays[B] = torch.zeros(outputs, start.rank)
        return arrays

    def group(self, name: str) -> str:
        return "A" if name.endswith(".lora_A") else "B"


class Mixer(Part):
    """For each layer with two pairs, the first one's weight: a sigmoid of the layer's input, first 1/2."""

    prefix = "mixer."
    groups = ("mixer",)

    def names(self, scope: Scope) -> list[str]:
        return [f"mixer.{stem}.{kind}" for stem in scope.stems for kind in ("weight", "bias")]

    def fresh(self, scope: Scope, start: Start) -> Arrays:
        arrays: Arrays = {}
        for block in scope.blocks:
            for target in scope.backbone.targets:
                stem = f"mixer.block.{block}.{target}"
                arrays[f"{stem}.weight"] = torch.zeros(1, scope.backbone.shape(target)[1])
                arrays[f"{stem}.bias"] = torch.zeros(1)
        return arrays


class Head(Part):
    """The task head. It starts at zero; `model/heads.py` makes heads from statistics or class names.

    A `text` head keeps its class embeddings, and only the log of their scale trains.
    """

    prefix = "head."
    groups = ("head",)
    rate = "head"
    can_batch = True

    def names(self, scope: Scope) -> list[str]:
        return ["head.log_scale"] if scope.head_kind == "text" else ["head.weight", "head.bias"]

    def fresh(self, scope: Scope, start: Start) -> Arrays:
        return zero_head(start.classes, scope.backbone.feature_size)


class Prompt(Part):
    """Soft prompt [tokens, d] before every sample's tokens; it starts with small random values."""

    prefix = "prompt."
    groups = ("prompt",)

    def names(self, scope: Scope) -> list[str]:
        return ["prompt.tokens"]

    def fresh(self, scope: Scope, start: Start) -> Arrays:
        generator = seeds.torch_generator(start.seed, "prompt")
        tokens = 0.02 * torch.randn(start.prompt_tokens, scope.backbone.width, generator=generator)
        return {"prompt.tokens": tokens}

    def block(self, name: str) -> int | None:
        return flops.BELOW


class Attention(Part):
    """Weights on the components of the pooled feature, from two linear layers; all weights start equal."""

    prefix = "attention."
    groups = ("attention",)

    def names(self, scope: Scope) -> list[str]:
        return [f"attention.{layer}.{kind}" for layer in ("in", "out") for kind in ("weight", "bias")]

    def fresh(self, scope: Scope, start: Start) -> Arrays:
        size = scope.backbone.feature_size
        return {
            "attention.in.weight": _kaiming(size, size, seeds.torch_generator(start.seed, "attention")),
            "attention.in.bias": torch.zeros(size),
            "attention.out.weight": torch.zeros(size, size),
            "attention.out.bias": torch.zeros(size),
        }


PARTS: dict[str, Part] = {}
"""The registered parts by their prefix, in the order in which `trained_names` lists their arrays."""


def register_part(part: Part) -> None:
    """Make a part known by its prefix and its groups.

    Raises:
        ValueError: the prefix is no single word with a dot, or another part has it, or has one of the groups.
    """
    if not part.prefix.endswith(".") or not part.prefix[:-1].isidentifier():
        raise ValueError(f"prefix {part.prefix!r} is not one word and a dot")
    taken = {group for other in PARTS.values() for group in other.groups} | {GATE}
    if part.prefix in PARTS or taken & {*part.groups}:
        raise ValueError(f"part {part.prefix!r} has the prefix or a group of another part")
    PARTS[part.prefix] = part


for _part in (Lora(), Mixer(), Head(), Prompt(), Attention()):
    register_part(_part)


def part_of(name: str) -> Part | None:
    """The part that an array belongs to, or None (`gate.adapter.down`, `beside.head.weight`)."""
    return PARTS.get(f"{name.partition('.')[0]}.")


def known_groups() -> list[str]:
    """The parameter groups of all parts, and the gate's."""
    return [*(group for part in PARTS.values() for group in part.groups), GATE]


def group(name: str) -> str:
    """The parameter group of an array; for an array of no part, the first word of its name."""
    part = part_of(name)
    return part.group(name) if part else name.partition(".")[0]


def rate_of(name: str, rates: tuple[float, float]) -> float:
    """The learning rate of an array, from the rates of the head and of all else."""
    part = part_of(name)
    return rates[0] if part and part.rate == "head" else rates[1]


def trained_names(
    backbone: Backbone, groups: Iterable[str], blocks: Iterable[int], head_kind: str
) -> list[str]:
    """Names of the arrays of these parameter groups that train, with these blocks active."""
    scope = _scope(backbone, groups, blocks, head_kind)
    return [name for part in _chosen(scope) for name in part.names(scope)]


def fresh_parts(
    backbone: Backbone, groups: Iterable[str], blocks: Iterable[int], prompt_tokens: int, seed: int
) -> Arrays:
    """First values of the parts of these groups, without pairs (`fresh_lora`) and head (`model/heads.py`)."""
    scope, start = _scope(backbone, groups, blocks), Start(seed, prompt_tokens=prompt_tokens)
    arrays: Arrays = {}
    for part in _chosen(scope):
        if not isinstance(part, Lora | Head):
            arrays |= part.fresh(scope, start)
    return arrays


def fresh_lora(
    backbone: Backbone,
    blocks: Iterable[int],
    rank: int,
    seed: int,
    *purpose: str | int,
    known: Collection[str] = (),
) -> Arrays:
    """New pairs for these blocks, as `Lora` starts them, without layers of which A and B are `known`."""
    return Lora().fresh(_scope(backbone, Lora.groups, blocks), Start(seed, purpose, rank, known=known))


def _scope(
    backbone: Backbone, groups: Iterable[str], blocks: Iterable[int], head_kind: str = "linear"
) -> Scope:
    return Scope(backbone, tuple(groups), tuple(sorted(blocks)), head_kind)


def _chosen(scope: Scope) -> list[Part]:
    """The parts of the scope's groups; ValueError for a group of no part, except the gate's."""
    known = known_groups()
    if unknown := [group for group in scope.groups if group not in known]:
        raise ValueError(
            f"parameter group {unknown[0]!r} belongs to no part; known: {', '.join(sorted(known))}"
        )
    return [part for part in PARTS.values() if {*part.groups} & {*scope.groups}]


def _kaiming(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniform between -1 and 1 over the square root of `columns`, [rows, columns]."""
    bound = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)
