"""The task head: how each kind begins."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.model.arrays import Arrays
from fedms.model.discriminant import Discriminant

NEAREST_SCALE = 20.0
"""Scale of the cosine to a class's reference at the start (CLIP trains it to about 14 to 100)."""


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
    """The linear discriminant as a head that training goes on from."""
    projected = discriminant.means @ discriminant.precision
    bias = (
        -0.5 * (projected * discriminant.means).sum(1) / discriminant.temperature + discriminant.prior.log()
    )
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
