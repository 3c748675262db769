"""Packed batches: the tokens of several texts one after another, without padding.

All layers of a block but attention work on each token alone, so they run over [1, tokens, d] as they are.
Attention is replaced by transformers' own way to do so (`AttentionInterface`): texts of equal length that lie
side by side attend as one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ATTENTION = "fedms-packed"
"""Name of the attention of packed batches in transformers' registry."""
TOKENS = 2048
"""Tokens of a packed batch, unless one text has more. From 1,000 to 8,000 the time is the same."""


class Packing:
    """The lengths of a packed batch's texts; it stands where the mask of a padded batch stands.

    Attributes:
        lengths: tokens of each text, in order.
        shapes: (texts, tokens of each) for texts of equal length side by side.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray) -> None:
        self.lengths = [int(length) for length in lengths]
        self.shapes = [(len(list(group)), length) for length, group in itertools.groupby(self.lengths)]

    def pack(self, padded: Tensor) -> Tensor:
        """Hidden states [texts, longest, d] -> [1, tokens, d]."""
        real = torch.arange(padded.shape[1]) < torch.tensor(self.lengths)[:, None]
        return padded[real.to(padded.device)][None]

    def rectangles(self, packed: Tensor, dim: int = 1) -> Iterator[Tensor]:
        """The tokens of each of the `shapes`, with [texts, tokens] in place of this dimension."""
        sizes = [texts * tokens for texts, tokens in self.shapes]
        for shape, part in zip(self.shapes, torch.split(packed, sizes, dim), strict=True):
            yield part.view(*part.shape[:dim], *shape, *part.shape[dim + 1 :])


def chunks(lengths: np.ndarray) -> list[np.ndarray]:
    """Positions sorted by length, in parts of at most `TOKENS` tokens or one text."""
    parts: list[list[int]] = []
    room = 0
    for position in np.argsort(lengths, kind="stable"):
        if not parts or lengths[position] > room:
            parts.append([])
            room = TOKENS
        parts[-1].append(position)
        room -= lengths[position]
    return [np.array(part) for part in parts]


def shapes(hidden: Tensor, lengths: Tensor | Packing | None) -> list[tuple[int, int]]:
    """(texts, tokens of each) that a pass over these hidden states computes."""
    return lengths.shapes if isinstance(lengths, Packing) else [(hidden.shape[0], hidden.shape[1])]


@contextmanager
def packed_attention(config: Any) -> Iterator[None]:
    """Inside, the model of this config attends within the texts of a packed batch."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)
    usual = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = usual


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Packing,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Three times [1, heads, tokens, size] -> [1, tokens, heads, size]."""
    found = []
    parts = (mask.rectangles(each[0]) for each in (query, key, value))
    # [heads, texts, tokens, size] -> [texts, heads, tokens, size] and back
    for q, k, v in zip(*parts, strict=True):
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        attended = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        found.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(found)[None], None
