"""The weighted mean of each array.

Clients may answer with different arrays (blocks, capacities), so the weights of each array are normalised
over the clients that trained it. An array that no client trained keeps its value. Updates are taken in the
order of the clients' names, so the order of answers does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedms.config import Config
from fedms.federation.aggregation.aggregator import Aggregator
from fedms.federation.messages import Update


def average(shared: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
    """Weighted mean of each array (FedAvg, arXiv 1602.05629)."""
    new = dict(shared)
    for name in sorted({name for update in updates for name in update.arrays}):
        parts = [(update.weight, update.arrays[name]) for update in ordered(updates) if name in update.arrays]
        new[name] = weighted_mean(parts).to(parts[0][1].dtype)
    return new


def ordered(updates: Sequence[Update]) -> list[Update]:
    """The updates in the order of the clients' names."""
    return sorted(updates, key=lambda update: update.client)


def weighted_mean(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Mean of arrays of one shape, each with its weight; float64."""
    total = sum(weight for weight, _ in parts)
    mean = torch.zeros_like(parts[0][1], dtype=torch.float64)
    for weight, array in parts:
        mean += (weight / total) * array.double()
    return mean


def _average(shared: Mapping[str, Tensor], updates: Sequence[Update], config: Config) -> dict[str, Tensor]:
    return average(shared, updates)


AGGREGATORS = (
    Aggregator("average", _average, weighted_mean=True),
    # with A frozen, the mean of the B is the mean of the products (arXiv 2403.12313)
    Aggregator("freeze-a", _average, weighted_mean=True, freezes_a=True),
)
