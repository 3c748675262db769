"""An expert: one LoRA pair per target of every active block, and a task head. A dict of named arrays and how to run it.

Names: `block.3.query.lora_A`, `block.3.query.lora_B`, `block.3.query.residual`, `head.weight`, `head.bias`, `head.log_scale`.
Some methods have more: a second pair and head beside these (`beside.block.3.query.lora_A`, `beside.head.weight`), what weighs the
two (`mixer.block.3.query.weight`, `.bias`), soft prompts (`prompt.tokens`), an attention over the pooled feature (`attention....`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms import seeds
from fedms.model.backbone import Backbone
from fedms.model.lora import Pair
from fedms.model.statistics import Discriminant, normalise

Arrays = dict[str, Tensor]
NEAREST_SCALE = 20.0
"""Scale of the cosine to a class's reference at the start (CLIP trains it to about 14 to 100)."""


class Expert:
    """Arrays that turn the backbone into a classifier.

    The head reads the pooled feature scaled to length sqrt(d): logits = exp(log_scale) (W x + b).

    Attributes:
        weight: how much its own pairs and head count against those beside them, [n] for the samples it is run over; where
            there is a mixer, that says it.
    """

    def __init__(self, arrays: Mapping[str, Tensor], scale: float, weight: Tensor | None = None) -> None:
        self.arrays = dict(arrays)
        self.scale = scale
        self.weight = weight

    def pairs(self, picks: np.ndarray | None = None) -> dict[tuple[int, str], Pair]:
        """The pairs to lend to the backbone, by (block, target); `picks` are the samples of the batch."""
        weight = self.weight[picks][:, None, None] if self.weight is not None and picks is not None else None
        found = {}
        for name, A in self.arrays.items():
            if name.endswith(".lora_A") and name.startswith("block."):
                stem = name.removesuffix(".lora_A")
                beside = self._two(f"beside.{stem}.lora_A", f"beside.{stem}.lora_B")
                mixer = self._two(f"mixer.{stem}.weight", f"mixer.{stem}.bias")
                residual = self.arrays.get(f"{stem}.residual")
                found[split_name(stem)] = Pair(A, self.arrays[f"{stem}.lora_B"], self.scale, residual, beside, weight, mixer)
        return found

    def _two(self, first: str, second: str) -> tuple[Tensor, Tensor] | None:
        return (self.arrays[first], self.arrays[second]) if first in self.arrays else None

    @property
    def prompt(self) -> Tensor | None:
        """Soft prompt [tokens, d] that goes before every sample, or None."""
        return self.arrays.get("prompt.tokens")

    def logits(self, features: Tensor) -> Tensor:
        """[n, d] -> [n, C]"""
        x = normalise(features)
        if "attention.in.weight" in self.arrays:
            x = normalise(x * self._attention(x))
        own = self._head("head", x)
        if self.weight is None:
            return own
        return torch.lerp(self._head("beside.head", x), own, self.weight[:, None].to(own.device))

    def _head(self, name: str, x: Tensor) -> Tensor:
        raw = F.linear(x, self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"])
        return raw * self.arrays[f"{name}.log_scale"].exp()

    def _attention(self, x: Tensor) -> Tensor:
        """What each component of a feature counts, [n, d]; the same for all at the start."""
        hidden = F.gelu(F.linear(x, self.arrays["attention.in.weight"], self.arrays["attention.in.bias"]))
        return F.softmax(F.linear(hidden, self.arrays["attention.out.weight"], self.arrays["attention.out.bias"]), dim=1)

    def train(self, names: Iterable[str]) -> list[Tensor]:
        """Make these arrays, and no others, fresh leaves that train; return them in the order given."""
        names = list(names)
        self.arrays = {name: array.detach() for name, array in self.arrays.items()}
        for name in names:
            self.arrays[name] = self.arrays[name].clone().requires_grad_(True)
        return [self.arrays[name] for name in names]

    def to(self, device: torch.device) -> Expert:
        """The same on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return Expert({name: array.to(device) for name, array in self.arrays.items()}, self.scale, weight)

    def detached(self) -> Arrays:
        return {name: array.detach() for name, array in self.arrays.items()}


def split_name(name: str) -> tuple[int, str]:
    """`block.3.query` or `block.3.query.lora_A` -> (3, "query")."""
    _, block, rest = name.split(".", 2)
    return int(block), rest.removesuffix(".lora_A").removesuffix(".lora_B").removesuffix(".residual")


def block_of(name: str) -> int | None:
    """The block an array belongs to, or None."""
    found = re.match(r"(?:mixer\.|beside\.)?block\.(\d+)\.", name)
    return int(found[1]) if found else None


PARTS = ("block.", "head.", "attention.", "prompt.", "mixer.")
"""How the names of an expert's arrays begin."""


def group(name: str) -> str:
    """The parameter group of an expert's array: `A` and `B` for the pairs' matrices, else the first part of its name."""
    if name.startswith("block."):
        return "A" if name.endswith(".lora_A") else "B"
    return name.partition(".")[0]


def trained_names(backbone: Backbone, groups: Iterable[str], blocks: Iterable[int], head_kind: str) -> list[str]:
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


def fresh_parts(backbone: Backbone, groups: Iterable[str], blocks: Iterable[int], prompt_tokens: int, seed: int) -> Arrays:
    """What these groups begin with beyond pairs and head: a mixer that weighs both pairs alike, an attention that changes
    nothing, a prompt of small random tokens."""
    arrays: Arrays = {}
    size = backbone.feature_size
    if "mixer" in groups:
        for block in sorted(blocks):
            for target in backbone.targets:
                stem = f"mixer.block.{block}.{target}"
                arrays |= {f"{stem}.weight": torch.zeros(1, backbone.shape(target)[1]), f"{stem}.bias": torch.zeros(1)}
    if "attention" in groups:
        bound = 1 / math.sqrt(size)
        weight = torch.empty(size, size).uniform_(-bound, bound, generator=seeds.torch_generator(seed, "attention"))
        arrays |= {"attention.in.weight": weight, "attention.in.bias": torch.zeros(size)}
        arrays |= {"attention.out.weight": torch.zeros(size, size), "attention.out.bias": torch.zeros(size)}
    if "prompt" in groups:
        generator = seeds.torch_generator(seed, "prompt")
        arrays["prompt.tokens"] = 0.02 * torch.randn(prompt_tokens, backbone.width, generator=generator)
    return arrays


def fresh_lora(backbone: Backbone, blocks: Iterable[int], rank: int, seed: int, *purpose: str | int, known: Collection[str] = ()) -> Arrays:
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


def head(weight: Tensor, bias: Tensor | None = None, log_scale: float = 0.0) -> Arrays:
    """A head's arrays from a weight [C, d]."""
    bias = torch.zeros(weight.shape[0]) if bias is None else bias
    return {"head.weight": weight.contiguous(), "head.bias": bias, "head.log_scale": torch.tensor([log_scale])}


def zero_head(classes: int, size: int) -> Arrays:
    return head(torch.zeros(classes, size))


def statistics_head(discriminant: Discriminant) -> Arrays:
    """The linear discriminant as a head that training goes on from."""
    projected = discriminant.means @ discriminant.precision
    bias = -0.5 * (projected * discriminant.means).sum(1) / discriminant.temperature + discriminant.prior.log()
    return head(projected / discriminant.temperature, bias)


def nearest_head(references: Tensor, frozen: bool = False) -> Arrays:
    """Cosine to one reference a class [C, d] times a scale: class-name embeddings, or class means.

    Frozen, only the log of the scale trains (CLIP's way).
    """
    direction = F.normalize(references, dim=-1) / math.sqrt(references.shape[1])
    return head(direction, log_scale=math.log(NEAREST_SCALE)) if frozen else head(direction * NEAREST_SCALE)


def head_names(kind: str) -> tuple[str, ...]:
    """Which of a head's arrays train and travel."""
    return ("head.log_scale",) if kind == "text" else ("head.weight", "head.bias")
