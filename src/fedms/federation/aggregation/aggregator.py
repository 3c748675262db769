"""The declaration of an aggregator: a pure function, and what the server must know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedms.config import Config
from fedms.federation.messages import Update

Combine = Callable[[Mapping[str, Tensor], Sequence[Update], Config], dict[str, Tensor]]
"""From the shared arrays, the clients' updates and the config to the new shared arrays. It changes none of
them, and its result does not depend on the order of the updates."""


@dataclass(frozen=True)
class Aggregator:
    """One value of `federation.aggregation`, or of `federation.robust`."""

    name: str
    combine: Combine
    robust: bool = False
    """It is a value of `federation.robust`: it replaces the weighted mean where clients may lie."""
    weighted_mean: bool = False
    """It is the mean of each array, weighted by samples. Only such a mean can be replaced by a robust one,
    and only from such a mean can a client subtract its own part (`average: beside`)."""
    products: bool = False
    """It averages the products BA. In a stage that does not share both matrices, the weighted mean is taken
    instead."""
    mixed_ranks: bool = False
    """The clients' pairs may differ in rank (`lora.tiers`)."""
    residual: bool = False
    """It adds a frozen residual beside A and B."""
    freezes_a: bool = False
    """No stage trains an A that it would share beside B."""
