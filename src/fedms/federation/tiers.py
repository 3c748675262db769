"""Tiers of clients: how many blocks each client can train, and at which rank."""

from __future__ import annotations

from collections.abc import Sequence

from fedms.config.sections import ActivationConfig, LoraConfig
from fedms.core import seeds


def deal(shares: Sequence[float], clients: Sequence[str], seed: int, purpose: str) -> dict[str, int]:
    """The tier of each client, by the tiers' shares, in an order drawn by the seed."""
    order = seeds.numpy_generator(seed, purpose).permutation(len(clients))
    edges = [round(sum(shares[: tier + 1]) * len(clients)) for tier in range(len(shares))]
    last = len(shares) - 1
    return {
        clients[index]: next((tier for tier in range(last) if place < edges[tier]), last)
        for place, index in enumerate(order)
    }


def capacities(config: ActivationConfig, clients: list[str], depth: int, seed: int) -> dict[str, int]:
    """The number of blocks that each client can train."""
    if not config.capacity:
        return dict.fromkeys(clients, depth)
    tiers = deal([tier.share for tier in config.capacity], clients, seed, "capacity")
    return {client: min(config.capacity[tier].blocks, depth) for client, tier in tiers.items()}


def ranks(config: LoraConfig, clients: list[str], seed: int) -> dict[str, int]:
    """The rank of each client's pairs."""
    if not config.tiers:
        return dict.fromkeys(clients, config.rank)
    tiers = deal([tier.share for tier in config.tiers], clients, seed, "rank")
    return {client: config.tiers[tier].rank for client, tier in tiers.items()}


def trainable(active: list[int], capacity: int, order: str) -> list[int]:
    """The blocks that a client of this capacity trains: the first ones of the order."""
    return active[-capacity:] if order == "top-down" else active[:capacity]
