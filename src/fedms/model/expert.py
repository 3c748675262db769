"""An expert: one LoRA pair per target of every active block, and a task head. A dict of named arrays and how to run it.

Names: `block.3.query.lora_A`, `block.3.query.lora_B`, `block.3.query.residual`, `head.weight`, `head.bias`, `head.log_scale`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms import seeds
from fedms.model.backbone import Backbone
from fedms.model.lora import Pair
from fedms.model.statistics import Discriminant, normalise

Arrays = dict[str, Tensor]
TEXT_SCALE = 20.0
"""Scale of the cosine to class-name embeddings at the start (CLIP trains it to about 14 to 100)."""


class Expert:
    """Arrays that turn the backbone into a classifier.

    The head reads the pooled feature scaled to length sqrt(d): logits = exp(log_scale) (W x + b).
    """

    def __init__(self, arrays: Mapping[str, Tensor], scale: float) -> None:
        self.arrays = dict(arrays)
        self.scale = scale

    def pairs(self) -> dict[tuple[int, str], Pair]:
        """The pairs to lend to the backbone, by (block, target)."""
        found = {}
        for name, A in self.arrays.items():
            if name.endswith(".lora_A"):
                stem = name.removesuffix(".lora_A")
                block, target = split_name(stem)
                found[block, target] = Pair(A, self.arrays[f"{stem}.lora_B"], self.scale, self.arrays.get(f"{stem}.residual"))
        return found

    def logits(self, features: Tensor) -> Tensor:
        """[n, d] -> [n, C]"""
        raw = F.linear(normalise(features), self.arrays["head.weight"], self.arrays["head.bias"])
        return raw * self.arrays["head.log_scale"].exp()

    def train(self, names: Iterable[str]) -> list[Tensor]:
        """Make these arrays, and no others, fresh leaves that train; return them in the order given."""
        names = list(names)
        self.arrays = {name: array.detach() for name, array in self.arrays.items()}
        for name in names:
            self.arrays[name] = self.arrays[name].clone().requires_grad_(True)
        return [self.arrays[name] for name in names]

    def to(self, device: torch.device) -> Expert:
        """The same on another device."""
        return Expert({name: array.to(device) for name, array in self.arrays.items()}, self.scale)

    def detached(self) -> Arrays:
        return {name: array.detach() for name, array in self.arrays.items()}


def split_name(name: str) -> tuple[int, str]:
    """`block.3.query` or `block.3.query.lora_A` -> (3, "query")."""
    _, block, rest = name.split(".", 2)
    return int(block), rest.removesuffix(".lora_A").removesuffix(".lora_B").removesuffix(".residual")


def block_of(name: str) -> int | None:
    """The block an array belongs to, or None."""
    return int(name.split(".", 2)[1]) if name.startswith("block.") else None


def lora_names(backbone: Backbone, blocks: Iterable[int], matrices: str = "AB") -> list[str]:
    """Names of these blocks' matrices."""
    return [f"block.{block}.{target}.lora_{matrix}" for block in sorted(blocks) for target in backbone.targets for matrix in matrices]


def fresh_lora(backbone: Backbone, blocks: Iterable[int], rank: int, seed: int, *purpose: str | int) -> Arrays:
    """New pairs for these blocks: A random (uniform, Kaiming), B zero, so that nothing changes at that moment.

    Each block's A depends on the seed and the block alone, not on when the block is activated.
    """
    arrays: Arrays = {}
    for block in sorted(blocks):
        for target in backbone.targets:
            outputs, inputs = backbone.shape(target)
            generator = seeds.torch_generator(seed, "lora", *purpose, block, target)
            bound = 1 / math.sqrt(inputs)
            arrays[f"block.{block}.{target}.lora_A"] = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
            arrays[f"block.{block}.{target}.lora_B"] = torch.zeros(outputs, rank)
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


def text_head(embeddings: Tensor, frozen: bool) -> Arrays:
    """Cosine to the class names' embeddings [C, d] times a scale; frozen, only the log of the scale trains (CLIP's way)."""
    direction = F.normalize(embeddings, dim=-1) / math.sqrt(embeddings.shape[1])
    return head(direction, log_scale=math.log(TEXT_SCALE)) if frozen else head(direction * TEXT_SCALE)


def head_names(kind: str) -> tuple[str, ...]:
    """Which of a head's arrays train and travel."""
    return ("head.log_scale",) if kind == "text" else ("head.weight", "head.bias")
