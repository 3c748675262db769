"""Floating-point operations of blocks, counted by formula (a multiply and an add are two).

Forward, a block costs 2 t P for its P linear weights and 4 t^2 d for attention, per sample of t tokens.
Backward, a block that passes the gradient on costs as much again, and attention twice. The lowest block that
trains passes nothing below its query, key and value. With gradient checkpointing, the blocks that pass it
compute their forward pass once more. A test compares the formula with PyTorch's own counter.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from fedms.model.backbone import Backbone

BELOW = -1
"""Block number of arrays that train below all blocks: a soft prompt."""


def forward(backbone: Backbone, samples: int, tokens: int, start: int, stop: int | None = None) -> int:
    """Forward operations of blocks `start` to `stop` - 1 for a batch."""
    blocks = (backbone.depth if stop is None else stop) - start
    linear = 2 * tokens * backbone.block_linear_weights
    attention = 4 * tokens * tokens * backbone.width
    return samples * blocks * (linear + attention)


def pairs(backbone: Backbone, samples: int, tokens: int, rank: int, blocks: Collection[int]) -> int:
    """Forward operations of the pairs of these blocks."""
    sizes = sum(sum(backbone.shape(target)) for target in backbone.targets)
    return samples * tokens * len(blocks) * 2 * rank * sizes


def residuals(backbone: Backbone, samples: int, tokens: int, layers: Collection[tuple[int, str]]) -> int:
    """Forward operations of these layers' dense residuals (exact aggregation); backward costs the same."""
    return sum(2 * samples * tokens * math.prod(backbone.shape(target)) for _, target in layers)


def backward(backbone: Backbone, samples: int, tokens: int, rank: int, trained: Collection[int]) -> int:
    """Backward operations from the loss down to the lowest of the `trained` blocks; 0 if none trains.

    Exact for pairs on query and value. For other targets it is an upper bound: the lowest block counts as if
    the gradient passed all of it. With `BELOW` the gradient does pass all blocks.
    """
    if not trained:
        return 0
    lowest = max(min(trained), 0)
    passed = forward(backbone, samples, tokens, lowest) * (2 if backbone.checkpointing else 1)
    twice_attention = samples * (backbone.depth - lowest) * 4 * tokens * tokens * backbone.width
    if min(trained) == BELOW:
        return passed + twice_attention
    unused = 2 * tokens * 3 * backbone.width * backbone.width  # below the lowest block's query, key and value
    if set(backbone.targets) == set(
        backbone.usual_targets
    ):  # query and value: no gradient of the key, none below each A
        unused += (
            2 * tokens * tokens * backbone.width + len(backbone.targets) * 2 * tokens * rank * backbone.width
        )
    return passed + twice_attention - samples * unused + 2 * pairs(backbone, samples, tokens, rank, trained)
