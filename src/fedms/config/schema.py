"""One experiment, typed. Every key is documented where it is declared.

`load_config` reads a YAML file, applies `key=value` overrides and checks everything that can be known without
touching data or model. A wrong key, type, range or combination raises `ConfigError` with one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from fedms.config.overrides import first_wrong, overridden, placed, tuples
from fedms.config.sections import (
    ActivationConfig,
    CacheConfig,
    CompareConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    FederationConfig,
    GateConfig,
    HeadConfig,
    LogConfig,
    LoraConfig,
    MixtureConfig,
    ModelConfig,
    PartitionConfig,
    Section,
    StatisticsConfig,
    TrainingConfig,
)
from fedms.config.yaml import read_yaml
from fedms.core.errors import ConfigError
from fedms.core.formatting import excerpt

KEYS_SHARED_BY_ALL_ROWS = (
    "seed",
    "data",
    "partition",
    "compare",
    "evaluation.everyone",
    "evaluation.validation",
)
"""Keys and sections in which the rows of a comparison must not differ, or it would pair results on different samples."""


class Config(Section):
    """One experiment."""

    seed: int = Field(0, ge=0)
    """Everything random is derived from it."""
    method: str = "fedms"
    """A name from `fedms methods`."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where tensors live."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In what the frozen backbone computes: `bfloat16` takes half of its memory and is meant for GPUs and long inputs. What trains
    stays in float32, and so do its gradients, its optimizer, and the features that heads and gate read."""
    deterministic: bool = True
    """Whether the same config and seed on the same machine give the same result to the last bit. Where false, the engine may measure in
    what way clients train fastest, one at a time or several in one batch, here or in worker processes, and results agree within a
    tolerance (docs/performance.md)."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    federation: FederationConfig = FederationConfig()
    training: TrainingConfig = TrainingConfig()
    activation: ActivationConfig = ActivationConfig()
    lora: LoraConfig = LoraConfig()
    head: HeadConfig = HeadConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    gate: GateConfig = GateConfig()
    mixture: MixtureConfig = MixtureConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cache: CacheConfig = CacheConfig()
    engine: EngineConfig = EngineConfig()
    log: LogConfig = LogConfig()
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        self.federation.check(self.partition.clients)
        if self.deterministic and (self.engine.stack or 1) > 1:
            raise ValueError(
                "engine.stack: more than 1 wants `deterministic: false`, since the last bits differ"
            )
        if self.lora.tiers and self.federation.aggregation != "svd":
            raise ValueError(
                "lora.tiers: pairs of different ranks can only be averaged with federation.aggregation: svd"
            )
        if self.partition.rule == "column" and self.partition.column is None:
            raise ValueError("partition.column: needed when partition.rule is `column`")
        if self.partition.rule == "dirichlet" and self.partition.alpha is None:
            raise ValueError("partition.alpha: needed when partition.rule is `dirichlet`")
        if self.gate.objective == "likelihood" and not self.gate.network:
            raise ValueError(
                "gate.network: must be true when gate.objective is `likelihood`, which trains nothing else"
            )
        if (
            self.gate.objective == "own-or-everyone"
            and self.gate.evidence == "none"
            and not self.gate.network
        ):
            raise ValueError(
                "gate.network: must be true when gate.evidence is `none`, or the gate knows nothing"
            )
        self._check_compare()
        return self

    def _check_compare(self) -> None:
        """Every variant and every candidate makes a whole experiment, on the same samples."""
        changes = {f"variants.{name}": [keys] for name, keys in self.compare.variants.items()}
        changes |= {
            f"tune.{key}": [{key: value} for value in values] for key, values in self.compare.tune.items()
        }
        for where, candidates in changes.items():
            for keys in candidates:
                fixed = [
                    key
                    for key in keys
                    if key.split(".")[0] in KEYS_SHARED_BY_ALL_ROWS
                    or key in KEYS_SHARED_BY_ALL_ROWS
                    or (key == "method" and where.startswith("tune."))
                ]
                if fixed:
                    raise ValueError(
                        f"compare.{excerpt(where)}: {excerpt(fixed[0])} must be the same in all that is compared"
                    )
                try:
                    changed(self, keys)
                except ConfigError as error:
                    raise ValueError(f"compare.{excerpt(where)}: {error}") from None

    def to_yaml(self) -> str:
        """The experiment with every default filled in."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read a config file (or mapping), apply `a.b=value` overrides, check, and fill in the defaults.

    Raises:
        FedmsError: the file cannot be read.
        ConfigError: not YAML, or a wrong key, type, range or combination.
    """
    values = dict(source) if isinstance(source, Mapping) else read_yaml(Path(source))
    for override in overrides:
        values = overridden(values, override)
    try:
        return Config.model_validate(tuples(values))
    except ValidationError as error:
        raise ConfigError(first_wrong(error, Config)) from None


def changed(config: Config, keys: Mapping[str, Any]) -> Config:
    """The experiment with these dotted keys replaced, as in `{"gate.prior": 0.9}`; its `compare` is left out.

    Raises:
        ConfigError: a wrong key, type, range or combination.
    """
    values = config.model_dump(exclude={"compare"})
    for key, value in keys.items():
        values = placed(values, key, value, excerpt(key))
    return load_config(values)
