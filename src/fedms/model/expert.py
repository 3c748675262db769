"""An expert: a dict of named arrays, and how to run them.

An expert has one LoRA pair per target of every active block, and a task head.

Names: `block.3.query.lora_A`, `block.3.query.lora_B`, `block.3.query.residual`, `head.weight`, `head.bias`,
`head.log_scale`. Some methods add arrays: a second pair and head (`beside.block.3.query.lora_A`,
`beside.head.weight`), the weights of the two pairs (`mixer.block.3.query.weight`, `.bias`), soft prompts
(`prompt.tokens`), and an attention over the pooled feature (`attention.in.weight`, ...).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.model.arrays import Arrays, split_name
from fedms.model.lora import Below, Pair
from fedms.model.statistics import normalise

ABOVE = ("head.", "beside.head.", "attention.")
"""How the names of arrays begin that work on the pooled feature."""


class Expert:
    """Arrays that turn the backbone into a classifier.

    The head reads the pooled feature scaled to length sqrt(d): logits = exp(log_scale) (W x + b).

    Attributes:
        weight: weight of its own pairs and head against the second ones, for each sample that it runs over,
            [n]. Pairs with a mixer take their weight from the mixer instead.
    """

    def __init__(self, arrays: Mapping[str, Tensor], scale: float, weight: Tensor | None = None) -> None:
        self.arrays = dict(arrays)
        self.scale = scale
        self.weight = weight
        self._below: dict[int, Below | None] = {}

    def pairs(self, picks: np.ndarray | None = None, start: int = 0) -> dict[tuple[int, str], Pair]:
        """The pairs to attach to the backbone from block `start` up, by (block, target); `picks` are the
        samples of the batch.
        """
        weight = self.weight[picks][:, None, None] if self.weight is not None and picks is not None else None
        found = {}
        for name, A in self.arrays.items():
            if name.endswith(".lora_A") and name.startswith("block."):
                stem = name.removesuffix(".lora_A")
                if split_name(stem)[0] < start:
                    continue
                beside = self._two(f"beside.{stem}.lora_A", f"beside.{stem}.lora_B")
                mixer = self._two(f"mixer.{stem}.weight", f"mixer.{stem}.bias")
                residual = self.arrays.get(f"{stem}.residual")
                found[split_name(stem)] = Pair(
                    A, self.arrays[f"{stem}.lora_B"], self.scale, residual, beside, weight, mixer
                )
        return found

    def below(self, boundary: int) -> Below | None:
        """Its pairs in blocks below the boundary, which must not train; None where there are none."""
        if boundary not in self._below:
            pairs = {key: pair for key, pair in self.pairs().items() if key[0] < boundary}
            sha = hashlib.sha256()
            for key, pair in sorted(pairs.items()):
                sha.update(repr(key).encode())
                for array in (pair.A, pair.B, pair.residual):
                    sha.update(b"" if array is None else array.detach().cpu().numpy().tobytes())
            self._below[boundary] = Below(pairs, sha.hexdigest()[:16]) if pairs else None
        return self._below[boundary]

    @property
    def body(self) -> Arrays:
        """The arrays that decide its features: all but those that work on the pooled feature."""
        return {name: array for name, array in self.arrays.items() if not name.startswith(ABOVE)}

    def _two(self, first: str, second: str) -> tuple[Tensor, Tensor] | None:
        return (self.arrays[first], self.arrays[second]) if first in self.arrays else None

    @property
    def prompt(self) -> Tensor | None:
        """Soft prompt [tokens, d] before every sample's tokens, or None."""
        return self.arrays.get("prompt.tokens")

    @property
    def packs(self) -> bool:
        """Whether it works on each token alone, so that it can run over packed batches."""
        return self.prompt is None and self.weight is None

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
        """Weights of the components of each feature, [n, d]; equal at the start."""
        hidden = F.gelu(F.linear(x, self.arrays["attention.in.weight"], self.arrays["attention.in.bias"]))
        return F.softmax(
            F.linear(hidden, self.arrays["attention.out.weight"], self.arrays["attention.out.bias"]), dim=1
        )

    def train(self, names: Iterable[str]) -> list[Tensor]:
        """Make new leaves of these arrays, and of no others; return them in the given order."""
        names = list(names)
        self.arrays = {name: array.detach() for name, array in self.arrays.items()}
        for name in names:
            self.arrays[name] = self.arrays[name].clone().requires_grad_(True)
        return [self.arrays[name] for name in names]

    def to(self, device: torch.device) -> Expert:
        """The same expert on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return Expert({name: array.to(device) for name, array in self.arrays.items()}, self.scale, weight)

    def detached(self) -> Arrays:
        return {name: array.detach() for name, array in self.arrays.items()}


def same_body(one: Expert | None, other: Expert | None) -> bool:
    """Whether two experts have the same features for every sample: they differ in their heads at most."""
    if one is None or other is None:
        return one is other
    mine, theirs = one.body, other.body
    return mine.keys() == theirs.keys() and all(
        array is theirs[name] or torch.equal(array.cpu(), theirs[name].cpu()) for name, array in mine.items()
    )
