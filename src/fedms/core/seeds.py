"""Seeds are derived for each purpose; no generator is passed on.

Every generator is seeded from the run's seed and from words for its purpose, stage, round and client. So no
draw depends on the order of work, on the engine, or on the work before a crash.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from the run's seed and a purpose, equal on every machine."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A new NumPy generator for this purpose."""
    return np.random.default_rng(derive(seed, *purpose))


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A new torch generator on the CPU for this purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))
