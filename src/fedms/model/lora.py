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
    """[r, in]"""
    B: Tensor
    """[out, r]"""
    scale: float
    """alpha / r"""
    residual: Tensor | None = None
    """[out, in], frozen: what exact aggregation could not put into A and B."""

    def delta(self) -> Tensor:
        """The update of the weight, [out, in]: scale B A, and the residual."""
        update = self.scale * (self.B @ self.A)
        return update if self.residual is None else update + self.residual


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
        return torch.add(out, F.linear(F.linear(x, pair.A), pair.B), alpha=pair.scale)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same."""
        merged = nn.Linear(self.base.in_features, self.base.out_features, bias=self.base.bias is not None)
        merged.load_state_dict(self.base.state_dict())
        if self.pair is not None:
            merged.weight += self.pair.delta()
        return merged
