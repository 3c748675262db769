"""A method is a list of stages; a stage says what is trained, what of it is shared, and which blocks are active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["lora", "head", "gate"]
"""Parameter groups: the experts' LoRA matrices, their task heads, the gate."""


@dataclass(frozen=True)
class Stage:
    """Some rounds of one kind."""

    name: str
    budget: Literal["global", "local"]
    """Whose rounds and cohort of `federation` it spends."""
    expert: Literal["global", "local"]
    """Which expert is trained. A local one is each client's own, beside the frozen global one if an earlier stage made it."""
    trains: tuple[Group, ...]
    shares: tuple[Group, ...]
    """What of it is averaged over the clients; of the gate, the part that `gate.share` says. The rest stays where it is."""
    activation: Literal["sal", "all"]
    """Which blocks are active: as the activation rule says (a local stage: `activation.blocks_local`), or all."""


@dataclass(frozen=True)
class Method:
    """What is done, and who predicts in the end."""

    name: str
    summary: str
    """One line."""
    paper: str | None
    stages: tuple[Stage, ...]
    predicts: Literal["global", "local", "mixture", "statistics"]
    """Who predicts for a client: the global expert, its local expert, both mixed, or the sums' discriminant."""
    gate: Literal["learned", "constant"] | None = None
    """What mixes the experts."""

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def has_global(self) -> bool:
        """Whether a global expert is trained."""
        return any(stage.expert == "global" for stage in self.stages)


GLOBAL = Stage("global", "global", "global", ("lora", "head"), ("lora", "head"), "all")
"""Federated LoRA with all blocks."""
GLOBAL_SAL = Stage("global", "global", "global", ("lora", "head"), ("lora", "head"), "sal")
"""Federated LoRA, sparsely activated: the first stage of FedMS."""
