"""A method is a list of stages; a stage says what is trained, what of it is shared, and which blocks are active."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedms.config import Config, load_config
from fedms.config.sections import TrainingConfig
from fedms.core.errors import ConfigError

Group = str
"""A parameter group: one of a registered part of `model/parts.py` (`A`, `B`, `head`, ...), or `gate`."""

LORA: tuple[Group, Group] = ("A", "B")


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
    activation: Literal["sal", "all", "none"]
    """Which blocks are active: as the activation rule says (a local stage: `activation.blocks_local`), all, or none."""
    phases: tuple[tuple[Group, ...], ...] = ()
    """The local steps of a round are divided evenly between these, in this order; default: all that is trained, at once."""
    pull: Literal["sent", "start"] | None = None
    """Where a proximal term of weight `training.proximal` pulls: to what the server sent in this round, or to where the local
    expert started."""
    average: Literal["replaces", "beside"] = "replaces"
    """Whether the clients' average replaces what a client trained, or is set beside it, frozen, as the rest of the world."""

    @property
    def averages_products(self) -> bool:
        """Whether both matrices of a pair are shared, so that their product can be averaged in their place."""
        return {*LORA} <= {*self.shares} and self.average == "replaces"

    def without(self, group: Group) -> Stage:
        """The same without this group."""
        trains, shares = (
            tuple(each for each in groups if each != group) for groups in (self.trains, self.shares)
        )
        return replace(self, trains=trains, shares=shares)


@dataclass(frozen=True)
class Method:
    """What is done, and who predicts in the end."""

    name: str
    summary: str
    """One line."""
    paper: str | None
    stages: tuple[Stage, ...]
    predicts: Literal["global", "local", "mixture", "blend", "statistics"]
    """Who predicts for a client: the global expert, its local expert, both mixed in their outputs, both blended in their pairs,
    or the sums' discriminant."""
    gate: Literal["learned", "constant", "counts"] | None = None
    """What mixes the experts."""
    label_prior: bool = False
    """Whether each client's label prior, softened by `gate.prior`, is put on the predictions."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Config keys that the method fixes, by their path."""

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def has_global(self) -> bool:
        """Whether there is a global expert."""
        return self.predicts != "statistics" and (
            not self.stages or any(stage.expert == "global" for stage in self.stages)
        )

    @property
    def has_frontier(self) -> bool:
        """Whether predictions move with the prior."""
        return self.predicts == "mixture" or self.label_prior

    def configure(self, config: Config) -> Config:
        """The experiment with the keys that this method fixes.

        Raises:
            ConfigError: they do not go with the others, or the method averages what would differ in shape.
        """
        config = load_config(config.model_dump(), [f"{key}={value}" for key, value in self.settings.items()])
        if config.lora.tiers and any(
            {*LORA} & {*stage.shares} and not stage.averages_products for stage in self.stages
        ):
            raise ConfigError(
                f"lora.tiers: method {self.name} averages A and B apart, which must be of one rank"
            )
        if config.federation.robust != "none":
            if config.federation.aggregation in ("exact", "svd"):
                raise ConfigError(
                    f"federation.robust: must be `none` with federation.aggregation: {config.federation.aggregation}"
                )
            if any(stage.average == "beside" for stage in self.stages):
                raise ConfigError(
                    f"federation.robust: must be `none`, since in method {self.name} clients take themselves out of the mean"
                )
        if (
            self.predicts == "blend"
            and config.federation.aggregation == "exact"
            and config.mixture.local_start == "scratch"
        ):
            kept = "since the residual that exact averaging keeps is blended with none"
            raise ConfigError(
                f"mixture.local_start: must be `global` with federation.aggregation: exact in method {self.name}, {kept}"
            )
        return config


GLOBAL = Stage("global", "global", "global", (*LORA, "head"), (*LORA, "head"), "all")
"""Federated LoRA with all blocks."""
GLOBAL_SAL = replace(GLOBAL, activation="sal")
"""Federated LoRA, sparsely activated: the first stage of FedMS."""
LOCAL = Stage("local", "local", "local", (*LORA, "head"), (), "all")
"""Each client's own expert, on from the global one; with all blocks."""


def throughout(stage: Stage) -> tuple[Stage, Stage]:
    """A personal method that shares all the time spends both budgets on the same: first its cohorts, then everybody."""
    return replace(stage, name="cohorts", budget="global"), replace(stage, name="everybody", budget="local")


def rates(stage: Stage, config: TrainingConfig) -> tuple[float, float]:
    """Learning rates of the head and of all else."""
    if stage.expert == "local":
        return config.local_learning_rate, config.local_learning_rate
    return config.head_learning_rate, config.learning_rate
