"""Gaussian noise from a cryptographic stream.

The numbers are floating point: attacks on their lowest bits are known (Mironov, CCS 2012), and
docs/privacy.md says so.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedms.config import Config
from fedms.core import seeds
from fedms.federation.private.accountant import multiplier_for
from fedms.federation.recipe import Recipe
from fedms.federation.secure.ciphers import stream


def multiplier_of(recipe: Recipe) -> float:
    """The multiplier of each release: all of them together spend the budget."""
    privacy = recipe.config.privacy
    assert privacy.epsilon is not None
    return multiplier_for(privacy.epsilon, privacy.delta, recipe.releases)


def deviations(recipe: Recipe, spreads: Mapping[str, float]) -> dict[str, float]:
    """By array, the deviation of the noise that one client adds."""
    privacy = recipe.config.privacy
    sensitivity = privacy.clip if privacy.unit == "client" else 1.0
    unit = multiplier_of(recipe) * sensitivity * privacy.noise_share
    return {name: unit * spread for name, spread in spreads.items()}


def clipped(arrays: Mapping[str, Tensor], spreads: Mapping[str, float], most: float) -> dict[str, Tensor]:
    """The arrays times one number, so that their joint norm, each over its spread, is this at most."""
    norm = math.sqrt(sum(float((arrays[name].double() / spreads[name]).square().sum()) for name in spreads))
    return {name: array.double() * min(1.0, most / max(norm, 1e-300)) for name, array in arrays.items()}


def noise_seed(config: Config, question: str, client: str) -> bytes:
    """32 bytes from the system, which nobody keeps; with `noise: seeded` those of the run's seed."""
    if config.privacy.noise != "seeded":
        return secrets.token_bytes(32)
    derived = seeds.derive(config.seed, "privacy noise", question, client)
    return derived.to_bytes(32, "big")


def noisy(arrays: Mapping[str, Tensor], deviations: Mapping[str, float], seed: bytes) -> dict[str, Tensor]:
    """The arrays with noise of these deviations, in float32."""
    return {
        name: (array.double() + deviations[name] * _gaussian(seed, name, array.shape)).float()
        for name, array in arrays.items()
    }


def _gaussian(seed: bytes, name: str, shape: torch.Size) -> Tensor:
    """Standard normal numbers by Box and Muller, float64, from 53 random bits each."""
    pairs = -(-shape.numel() // 2)
    words = stream(seed, name, 4 * pairs).view("<u8")
    radius, angle = (((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53).reshape(2, pairs)
    radius, angle = np.sqrt(-2 * np.log(radius)), 2 * math.pi * angle
    drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: shape.numel()]
    return torch.from_numpy(drawn).view(shape)
