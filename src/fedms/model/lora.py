"""A linear layer that can carry one low-rank pair, and can be without it.

    h = W x + (alpha / r) B A x        with A: [r, in], B: [out, r]

(LoRA, Hu et al. 2021, arXiv 2106.09685). The activation bit m of Sparsely Activated LoRA (FedMS, arXiv 2312.15926)
is the presence of the pair: without one the layer is the frozen layer, costs nothing more and has nothing to train.
The layer owns no pair; an expert lends it one (`Backbone.attach`), so one backbone serves any number of experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Pair:
    """What an expert lends to one linear layer."""

    A: Tensor
    """[r, in]; of K experts that run together (`model/stack.py`), [K, r, in]"""
    B: Tensor
    """[out, r], or [K, out, r]"""
    scale: float
    """alpha / r"""
    residual: Tensor | None = None
    """[out, in], frozen: what exact aggregation could not put into A and B."""
    beside: tuple[Tensor, Tensor] | None = None
    """A and B of a second pair, with which this one shares the layer."""
    weight: Tensor | None = None
    """How much this pair counts, and the second the rest of 1: [n, 1, 1], a weight a sample"""
    mixer: tuple[Tensor, Tensor] | None = None
    """In its place, [1, in] and [1]: the weight is the sigmoid of this affine function of the layer's input."""

    def to(self, dtype: torch.dtype) -> Pair:
        """The same in this type; gradients come back in the old one."""

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

    def delta(self) -> Tensor:
        """The update of the weight, [out, in]: scale B A, and the residual. A pair beside it has no such update."""
        assert self.beside is None
        update = self.scale * (self.B @ self.A)
        return update if self.residual is None else update + self.residual


def through(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, ..., in] through a weight [out, in]; through K weights [K, out, in], each K-th of the samples through its own."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    return torch.bmm(x.reshape(len(weight), -1, x.shape[-1]), weight.mT).view(*x.shape[:-1], -1)


class LoraLinear(nn.Module):
    """A frozen linear layer with a place for one pair."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.pair: Pair | None = None

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

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same."""
        merged = nn.Linear(self.base.in_features, self.base.out_features, bias=self.base.bias is not None)
        merged.load_state_dict(self.base.state_dict())
        if self.pair is not None:
            merged.weight += self.pair.delta()
        return merged
