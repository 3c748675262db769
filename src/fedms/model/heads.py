"""The task head: the first values of each kind."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.model.arrays import Arrays
from fedms.model.discriminant import Discriminant

NEAREST_SCALE = 20.0
"""First scale of the cosine to a class's reference (CLIP trains it to about 14 to 100)."""
HEAD_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidates for the share of the re-derived head in the global expert's; validation likelihood picks one."""


def head(weight: Tensor, bias: Tensor | None = None, log_scale: float = 0.0) -> Arrays:
    """A head's arrays from a weight [C, d]."""
    bias = torch.zeros(weight.shape[0]) if bias is None else bias
    return {
        "head.weight": weight.contiguous(),
        "head.bias": bias,
        "head.log_scale": torch.tensor([log_scale]),
    }


def zero_head(classes: int, size: int) -> Arrays:
    return head(torch.zeros(classes, size))


def statistics_head(discriminant: Discriminant) -> Arrays:
    """The linear discriminant as a head, from which training continues."""
    projected = discriminant.means @ discriminant.precision
    bias = (
        -0.5 * (projected * discriminant.means).sum(1) / discriminant.temperature + discriminant.prior.log()
    )
    return head(projected / discriminant.temperature, bias)


def mixed_head(trained: Arrays, derived: Arrays, share: float) -> Arrays:
    """A head between a trained one (share 0) and one from statistics (share 1), whose logits mix linearly."""
    if share == 0:
        return trained
    scale = trained["head.log_scale"].exp()
    weight, bias = (
        torch.lerp(trained[name] * scale, derived[name], share) for name in ("head.weight", "head.bias")
    )
    return head(weight, bias)


def nearest_head(references: Tensor, frozen: bool = False) -> Arrays:
    """A scaled cosine to one reference for each class, [C, d]: class-name embeddings or class means.

    If frozen, the scale is kept as its log, which alone trains (as in CLIP).
    """
    direction = F.normalize(references, dim=-1) / math.sqrt(references.shape[1])
    return head(direction, log_scale=math.log(NEAREST_SCALE)) if frozen else head(direction * NEAREST_SCALE)
