"""A linear layer that can carry one low-rank pair.

    h = W x + (alpha / r) B A x        with A: [r, in], B: [out, r]

(LoRA, Hu et al. 2021, arXiv 2106.09685). The activation bit m of Sparsely Activated LoRA (FedMS, arXiv
2312.15926) is the presence of the pair: without a pair the layer is the frozen layer, at no extra cost and
with nothing to train. The layer owns no pair. An expert's pairs are attached to it (`Backbone.attach`), so
one backbone serves any number of experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Pair:
    """An expert's arrays for one linear layer."""

    A: Tensor
    """[r, in]; [K, r, in] for K experts in one batch (`model/batched.py`)"""
    B: Tensor
    """[out, r], or [K, out, r]"""
    scale: float
    """alpha / r"""
    residual: Tensor | None = None
    """[out, in], frozen: the part of an exact average that does not fit into A and B"""
    beside: tuple[Tensor, Tensor] | None = None
    """A and B of a second pair on the same layer"""
    weight: Tensor | None = None
    """Weight w of this pair, and 1 - w of the second pair, for each sample: [n, 1, 1]"""
    mixer: tuple[Tensor, Tensor] | None = None
    """Replaces `weight`: w is the sigmoid of an affine function, [1, in] and [1], of the layer's input"""

    def to(self, dtype: torch.dtype) -> Pair:
        """The same pair in this type; gradients arrive in the old type."""

        def two(both: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
            return None if both is None else (both[0].to(dtype), both[1].to(dtype))

        residual = None if self.residual is None else self.residual.to(dtype)
        weight = None if self.weight is None else self.weight.to(dtype)
        return Pair(
            self.A.to(dtype),
            self.B.to(dtype),
            self.scale,
            residual,
            two(self.beside),
            weight,
            two(self.mixer),
        )


@dataclass(frozen=True)
class Below:
    """Frozen pairs of the blocks below a boundary: with them, the blocks are part of the frozen prefix."""

    pairs: Mapping[tuple[int, str], Pair]
    """By (block, target)"""
    digest: str
    """Of all numbers in them"""


def through(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, ..., in] times a weight [out, in], or sample i times weight i K // n of [K, out, in]."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    return torch.bmm(x.reshape(len(weight), -1, x.shape[-1]), weight.mT).view(*x.shape[:-1], -1)


class LoraLinear(nn.Module):
    """A frozen linear layer with a place for one pair."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.pair: Pair | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen weight [out, in]; some models look at its type."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        out: Tensor = self.base(x)
        pair = self.pair
        if pair is None:
            return out
        if pair.residual is not None:
            out = out + F.linear(x, pair.residual)
        update = through(through(x, pair.A), pair.B)
        if pair.beside is not None:
            weight = torch.sigmoid(F.linear(x, *pair.mixer)) if pair.mixer is not None else pair.weight
            assert weight is not None
            update = torch.lerp(F.linear(F.linear(x, pair.beside[0]), pair.beside[1]), update, weight)
        return torch.add(out, update, alpha=pair.scale)
