"""Floating-point operations of blocks, counted by formula (a multiply and an add are two).

Per sample of t tokens a block costs 2 t P forward for its P linear weights and 4 t^2 d for attention. Going back, what passes
through costs as much again, and attention twice; the lowest block that trains sends nothing below its query, key and value.
A test holds the formula against PyTorch's own counter.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from fedms.model.backbone import Backbone

BELOW = -1
"""The place of what trains below all blocks: a soft prompt."""


def forward(backbone: Backbone, samples: int, tokens: int, start: int, stop: int | None = None) -> int:
    """Blocks `start` to `stop` for a batch."""
    blocks = (backbone.depth if stop is None else stop) - start
    linear = 2 * tokens * backbone.block_linear_weights
    attention = 4 * tokens * tokens * backbone.width
    return samples * blocks * (linear + attention)


def pairs(backbone: Backbone, samples: int, tokens: int, rank: int, blocks: Collection[int]) -> int:
    """The low-rank path of these blocks, forward."""
    sizes = sum(sum(backbone.shape(target)) for target in backbone.targets)
    return samples * tokens * len(blocks) * 2 * rank * sizes


def residuals(backbone: Backbone, samples: int, tokens: int, layers: Collection[tuple[int, str]]) -> int:
    """The dense products that exact aggregation keeps beside these pairs, forward; going back costs as much again."""
    return sum(2 * samples * tokens * math.prod(backbone.shape(target)) for _, target in layers)


def backward(backbone: Backbone, samples: int, tokens: int, rank: int, trained: Collection[int]) -> int:
    """What a loss at the top costs on its way down to the lowest of the `trained` blocks; nothing where none trains.

    Exact for pairs on query and value. For pairs elsewhere too much, never too little: the lowest block counts as if all of
    it were passed through. So does the block above what is trained below them all (`BELOW`), which it is.
    """
    if not trained:
        return 0
    lowest = max(min(trained), 0)
    passed = forward(backbone, samples, tokens, lowest)
    twice_attention = samples * (backbone.depth - lowest) * 4 * tokens * tokens * backbone.width
    if min(trained) == BELOW:
        return passed + twice_attention
    unused = 2 * tokens * 3 * backbone.width * backbone.width  # below the lowest block's query, key and value
    if set(backbone.targets) == set(
        backbone.family.targets
    ):  # query and value: no gradient of the key, none below each A
        unused += (
            2 * tokens * tokens * backbone.width + len(backbone.targets) * 2 * tokens * rank * backbone.width
        )
    return passed + twice_attention - samples * unused + 2 * pairs(backbone, samples, tokens, rank, trained)
