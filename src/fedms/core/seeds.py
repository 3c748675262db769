"""Randomness is derived, never carried.

Every generator is seeded from the run's seed and the words that say what it is for (purpose, stage,
round, client). So no draw depends on order, on the engine, or on what ran before a crash.
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
    return np.random.default_rng(derive(seed, *purpose))


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))
