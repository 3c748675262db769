"""Methods: lists of stages. A stage says what is trained, what is shared, and which blocks are active."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from fedms.config import Config, load_config
from fedms.config.sections import TrainingConfig
from fedms.core.errors import ConfigError
from fedms.core.paths import is_name
from fedms.core.registry import Names
from fedms.federation.aggregation.registry import AGGREGATORS
from fedms.model.parts import known_groups

Group = str
"""A parameter group: one of a registered part of `model/parts.py` (`A`, `B`, `head`, ...), or `gate`."""

LORA: tuple[Group, Group] = ("A", "B")
PREDICTIONS = Names("predicts", "global", "local", "mixture", "blend", "statistics")
"""What a method's `predicts` accepts. `federation/prediction.py` holds the predictors, and adds a plug-in's
name."""


@dataclass(frozen=True)
class Stage:
    """Consecutive rounds of one kind."""

    name: str
    budget: Literal["global", "local"]
    """Which rounds and cohort of `federation` the stage uses."""
    expert: Literal["global", "local"]
    """Which expert is trained. Each client has its own local expert, beside the frozen global expert if an
    earlier stage made one."""
    trains: tuple[Group, ...]
    shares: tuple[Group, ...]
    """The groups that are averaged over the clients; of the gate, the part that `gate.share` names. All
    other groups stay with the client."""
    activation: Literal["sal", "all", "none"]
    """The active blocks: those of the activation rule (in a local stage `activation.blocks_local`), all, or
    none."""
    phases: tuple[tuple[Group, ...], ...] = ()
    """The local steps of a round are divided evenly between these groups, in this order. Default: all
    trained groups together."""
    pull: Literal["sent", "start"] | None = None
    """Where a proximal term of weight `training.proximal` pulls: to the arrays that the server sent in this
    round, or to the start of the local expert."""
    average: Literal["replaces", "beside"] = "replaces"
    """Whether the average of the clients replaces what a client trained, or is frozen beside it as the
    average of all other clients."""

    @property
    def averages_products(self) -> bool:
        """Whether both matrices of a pair are shared, so that their product can be averaged."""
        return {*LORA} <= {*self.shares} and self.average == "replaces"

    def trains_head_alone(self, config: Config) -> bool:
        """Whether no block is active, and nothing trains in an expert but its head."""
        active = self.activation == "all" or (
            self.activation == "sal" and config.activation.blocks_local != 0
        )
        return not active and {*self.trains} <= {*LORA, "head", "gate"}

    def without(self, group: Group) -> Stage:
        """The same stage without this group."""
        trains, shares = (
            tuple(each for each in groups if each != group) for groups in (self.trains, self.shares)
        )
        return replace(self, trains=trains, shares=shares)

    def check(self) -> None:
        """Raise ConfigError where the words of the stage contradict each other."""
        if not is_name(self.name) or self.name == "end":
            raise ConfigError(f"stage {self.name!r:.80}: cannot name a file, or is reserved")
        groups = (*self.trains, *self.shares, *(group for phase in self.phases for group in phase))
        for group in groups:
            if group not in known_groups():
                raise ConfigError(
                    f"stage {self.name}: {group!r:.80} is no parameter group; "
                    f"known: {', '.join(known_groups())}"
                )
        if unknown := {*self.shares, *(group for phase in self.phases for group in phase)} - {*self.trains}:
            raise ConfigError(
                f"stage {self.name}: shares or phases name {min(unknown)}, which `trains` lacks"
            )
        if self.expert == "global" and {*self.shares} != {*self.trains}:
            raise ConfigError(f"stage {self.name}: a global expert shares everything that it trains")


@dataclass(frozen=True)
class Method:
    """The stages of a method, and what predicts at the end: plain data (`to_dict`, `from_dict`)."""

    name: str
    summary: str
    """One line."""
    paper: str | None
    stages: tuple[Stage, ...]
    predicts: str
    """The predictor's name. Built in are `global` and `local` (an expert), `mixture` (both experts, mixed in
    their outputs), `blend` (both, blended in their pairs) and `statistics` (the discriminant of the feature
    sums)."""
    gate: Literal["learned", "constant", "counts"] | None = None
    """How the gate that mixes the experts is made."""
    label_prior: bool = False
    """Whether each client's label prior, softened by `gate.prior`, is added to the predictions."""
    no_text: str | None = None
    """Why it does not run with `task: text`; None where it does."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Config keys that the method fixes: dotted key and value."""

    def stage(self, name: str) -> Stage:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)

    def trains_heads_alone(self, config: Config) -> bool:
        """Whether local experts differ from the global one in their heads alone."""
        local = [stage for stage in self.stages if stage.expert == "local"]
        return (
            0 < len(local) < len(self.stages)
            and config.mixture.local_start == "global"
            and all(stage.trains_head_alone(config) for stage in local)
        )

    def to_dict(self) -> dict[str, Any]:
        """The method as values of JSON."""
        values: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Method:
        """The method that `to_dict` wrote.

        Raises:
            ConfigError: a field is missing, or a word is not known.
        """
        try:
            return _adapter().validate_python(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key, message = ".".join(map(str, first["loc"])), first["msg"]
            where = f"method {values.get('name')!r:.80}: {key}"
            raise ConfigError(
                f"{where}: {message[0].lower()}{message[1:]}, not {first['input']!r:.80}"
            ) from None

    def check(self) -> None:
        """Raise ConfigError where a word is not known, or the words contradict each other."""
        self.from_dict(asdict(self))
        if not is_name(self.name):
            raise ConfigError(f"method {self.name!r:.80}: cannot name a folder")
        where = f"method {self.name}"
        try:
            PREDICTIONS.check(self.predicts)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        for stage in self.stages:
            try:
                stage.check()
            except ConfigError as error:
                raise ConfigError(f"{where}, {error}") from None
        names, experts = [stage.name for stage in self.stages], [stage.expert for stage in self.stages]
        if len({*names}) < len(names):
            raise ConfigError(f"{where}: two stages have one name")
        if experts != sorted(experts):
            raise ConfigError(f"{where}: a global stage comes after a local one")
        if self.predicts in ("local", "mixture", "blend") and "local" not in experts:
            raise ConfigError(f"{where}: predicts {self.predicts}, but no stage trains a local expert")
        if self.predicts in ("mixture", "blend") and "global" not in experts:
            raise ConfigError(f"{where}: predicts {self.predicts}, but no stage trains a global expert")
        if (self.gate is not None) != (self.predicts == "mixture"):
            raise ConfigError(f"{where}: `gate` is needed for `predicts: mixture`, and only there")
        if (self.gate == "learned") != any("gate" in stage.trains for stage in self.stages):
            raise ConfigError(
                f"{where}: `gate: learned` is needed where a stage trains the gate, and only there"
            )

    def configure(self, config: Config) -> Config:
        """The experiment with the keys that this method fixes.

        Raises:
            ConfigError: these keys contradict the others, or the aggregator does not suit the method.
        """
        if config.task == "text" and self.no_text:
            raise ConfigError(f"method: {self.name} does not run with task: text: it {self.no_text}")
        config = load_config(config.model_dump(), [f"{key}={value}" for key, value in self.settings.items()])
        self._check_aggregation(config)
        return config

    def _check_aggregation(self, config: Config) -> None:
        federation = config.federation
        aggregator = AGGREGATORS[federation.aggregation]
        chosen = f"federation.aggregation: {federation.aggregation}"
        if config.lora.tiers and not aggregator.mixed_ranks:
            raise ConfigError(f"lora.tiers: {chosen} needs pairs of one rank")
        if config.lora.tiers and any(
            {*LORA} & {*stage.shares} and not stage.averages_products for stage in self.stages
        ):
            raise ConfigError(
                f"lora.tiers: method {self.name} averages A and B apart, which must be of one rank"
            )
        beside = any(stage.average == "beside" for stage in self.stages)
        if federation.robust != "none" and not aggregator.weighted_mean:
            raise ConfigError(f"federation.robust: must be `none` with {chosen}")
        if federation.robust != "none" and beside:
            raise ConfigError(
                "federation.robust: must be `none`, "
                f"since clients of method {self.name} subtract themselves from the mean"
            )
        if beside and not (aggregator.weighted_mean or aggregator.products):
            raise ConfigError(
                f"{chosen} is no weighted mean, "
                f"and clients of method {self.name} subtract themselves from the mean"
            )
        if self.predicts == "blend" and aggregator.residual and config.mixture.local_start == "scratch":
            raise ConfigError(
                f"mixture.local_start: must be `global` with {chosen} in method {self.name}, "
                "since a local expert from scratch has no residual to blend"
            )


@cache
def _adapter() -> TypeAdapter[Method]:
    return TypeAdapter(Method)


GLOBAL = Stage("global", "global", "global", (*LORA, "head"), (*LORA, "head"), "all")
"""Federated LoRA in all blocks."""
GLOBAL_SAL = replace(GLOBAL, activation="sal")
"""Federated LoRA, sparsely activated: the first stage of FedMS."""
LOCAL = Stage("local", "local", "local", (*LORA, "head"), (), "all")
"""Each client's own expert, which starts from the global one; in all blocks."""


def throughout(stage: Stage) -> tuple[Stage, Stage]:
    """Both budgets for one stage of a personal method: first its cohorts, then all clients."""
    return replace(stage, name="cohorts", budget="global"), replace(stage, name="everybody", budget="local")


def rates(stage: Stage, config: TrainingConfig) -> tuple[float, float]:
    """Learning rates of the head and of all other groups."""
    if stage.expert == "local":
        return config.local_learning_rate, config.local_learning_rate
    return config.head_learning_rate, config.learning_rate
