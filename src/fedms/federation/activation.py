"""Sparsely Activated LoRA: which blocks are active, and when their number grows (FedMS, arXiv 2312.15926).

k blocks are active, taken in an order. The default order is top-down: the lowest active block determines the
cost of the backward pass. With the rule `warm` (ours) all blocks are active at first.
"""

from __future__ import annotations

from typing import Any

from fedms.config.sections import ActivationConfig
from fedms.core.errors import ConfigError


class Activation:
    """The number of active blocks over the rounds of a stage.

    Attributes:
        active: the number of active blocks, k.
    """

    def __init__(self, config: ActivationConfig, depth: int) -> None:
        self.config = config
        self.depth = depth
        self.limit = min(config.maximum or depth, depth)
        self.planned = self.limit if config.blocks == "all" else min(config.blocks, self.limit)
        self.active = self.limit if config.rule == "warm" else self.planned
        self.rounds = 0
        self.queue: list[float] = []

    @property
    def trained(self) -> int:
        """The largest number of blocks that have been active."""
        return self.limit if self.config.rule == "warm" else self.active

    def blocks(self, count: int | None = None) -> list[int]:
        """The active blocks, ascending; or the first `count` of the order."""
        return self._first(self.active if count is None else count)

    def local_blocks(self) -> list[int]:
        """The active blocks of a local stage, ascending: none, or the global expert's and maybe more."""
        blocks = self.config.blocks_local
        if blocks == 0:
            return []
        return self._first(self.depth if blocks == "all" else max(self.active, blocks or 0))

    def _first(self, k: int) -> list[int]:
        return list(range(self.depth - k, self.depth)) if self.config.order == "top-down" else list(range(k))

    def observe(self, score: float | None, left: int) -> bool:
        """Record a round and its validation score, with `left` rounds to come; True where k has changed."""
        self.rounds += 1
        if score is not None:
            self.queue = [*self.queue, score][-self.config.queue :]
        if self.config.rule == "warm":
            if self.active == self.planned or self.rounds < self.config.warm_rounds:
                return False
            self.active = self.planned
            return True
        if self.active >= self.limit or not self._due(left):
            return False
        self.active = min(self.active + self.config.step, self.limit)
        self.rounds = 0
        self.queue = []
        return True

    def stays(self, left: int) -> bool:
        """Whether k stays after the next round, with `left` rounds to come, whatever its validation score. No
        later round needs that score then.
        """
        rule, rounds = self.config, self.rounds + 1
        if rule.rule == "warm":
            return self.active == self.planned or rounds < rule.warm_rounds
        if rule.rule == "fixed" or self.active >= self.limit:
            return True
        return rounds < rule.every if rule.rule == "every" else left < rule.queue

    def _due(self, left: int) -> bool:
        rule = self.config
        if rule.rule == "every":
            return self.rounds >= rule.every
        if rule.rule == "fixed" or self.rounds < rule.min_rounds or left < rule.queue:
            return False
        return self.rounds >= rule.max_rounds or self._plateau()

    def _plateau(self) -> bool:
        """Whether the queue is full, and its newer half gained less than epsilon over its older half."""
        if len(self.queue) < self.config.queue:
            return False
        half = len(self.queue) // 2
        older, newer = self.queue[:half], self.queue[-half:]
        return sum(newer) / half - sum(older) / half < self.config.epsilon

    def state(self) -> dict[str, Any]:
        """The present state, as values of JSON."""
        return {"active": self.active, "rounds": self.rounds, "queue": self.queue}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.active, self.rounds, self.queue = state["active"], state["rounds"], list(state["queue"])


def later_boundaries(config: ActivationConfig, depth: int) -> set[int]:
    """The lowest active blocks that a run may come to after its first one, when more blocks become active.

    Block 0 is not among them: no block lies below it.
    """
    plan = Activation(config, depth)
    if config.order != "top-down":
        return set()
    counts = {config.blocks_local} if isinstance(config.blocks_local, int) else set()
    if config.rule in ("plateau", "every"):
        counts |= {min(count, plan.limit) for count in range(plan.planned, depth + config.step, config.step)}
    return {depth - count for count in counts if plan.planned < count < depth}


def check_depth(config: ActivationConfig, depth: int, model: str) -> None:
    """Raise ConfigError where the config names more blocks than the backbone has."""
    named = {f"activation.{key}": getattr(config, key) for key in ("blocks", "blocks_local", "maximum")}
    named |= {f"activation.capacity.{i}.blocks": tier.blocks for i, tier in enumerate(config.capacity)}
    for key, value in named.items():
        if isinstance(value, int) and value > depth:
            raise ConfigError(f"{key}: {value} is more than the {depth} blocks of model {model}")
