"""One experiment as a typed config. The docstring of each key says what it does.

`load_config` reads a YAML file, applies `key=value` overrides and checks everything that can be known without
touching data or model. A wrong key, type, range or combination raises `ConfigError` with one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from fedms.config.comparison import CompareConfig
from fedms.config.data import DataConfig, PartitionConfig
from fedms.config.engine import EngineConfig
from fedms.config.examples import config_file
from fedms.config.federation import FederationConfig
from fedms.config.overrides import first_wrong, overridden, placed, tuples
from fedms.config.plugins import import_plugins
from fedms.config.privacy import PrivacyConfig
from fedms.config.sections import (
    ActivationConfig,
    CacheConfig,
    Device,
    EvaluationConfig,
    GateConfig,
    HeadConfig,
    LogConfig,
    LoraConfig,
    MixtureConfig,
    ModelConfig,
    Section,
    StatisticsConfig,
    TrainingConfig,
)
from fedms.config.yaml import read_yaml
from fedms.core.errors import ConfigError
from fedms.core.formatting import excerpt
from fedms.core.paths import is_name

KEYS_SHARED_BY_ALL_ROWS = (
    "seed",
    "task",
    "plugins",
    "data",
    "partition",
    "compare",
    "evaluation.everyone",
    "evaluation.public",
    "evaluation.validation",
)
"""Keys and sections in which rows of a comparison must not differ: it pairs results on the same test data."""


LEAST_AT_SITES = 5
"""`statistics.least` with sites, where the config does not say."""


class Config(Section):
    """The config of one experiment."""

    seed: int = Field(0, ge=0)
    """Seed from which all randomness is derived."""
    method: str = "fedms"
    """Method, by its name in `fedms methods`."""
    task: Literal["classification", "text"] = "classification"
    """What is learned: classes of texts or pictures, or the next token of texts (docs/text.md)."""
    plugins: tuple[str, ...] = ()
    """Python modules imported before anything is looked up by name; see docs/plugins.md."""
    device: Device = "cpu"
    """Device of models and data: `cpu`, `cuda` (an NVIDIA GPU), `mps` (an Apple GPU), or `auto`, which is the
    first of `cuda`, `mps` and `cpu` that is there."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number type of the frozen backbone. `bfloat16` needs half the memory and is meant for GPUs and long
    inputs. Trained parameters, their gradients and optimizer, and the features for heads and gate stay in
    float32."""
    deterministic: bool = True
    """Whether the same config and seed on the same machine give the same result to the last bit. If false,
    the engine may measure how clients train fastest (one at a time or several in one batch, in this process
    or in workers), and results agree within a tolerance (docs/performance.md)."""
    start_from: str | None = None
    """Folder of a finished run of the same method, classes and model, from which this one goes on: with its
    global expert, gate adapter and active blocks, and with what clients of the same names kept."""
    join: str | None = None
    """Name of a client that joins the run in `start_from`: it alone trains its own part, and nothing shared
    changes. All of `data.source` is its data. `fedms join` sets this key and those that follow from it."""
    model: ModelConfig = ModelConfig()
    """Backbone."""
    data: DataConfig = DataConfig()
    """Data set."""
    partition: PartitionConfig = PartitionConfig()
    """Assignment of samples to clients."""
    federation: FederationConfig = FederationConfig()
    """Rounds, cohorts and aggregation."""
    training: TrainingConfig = TrainingConfig()
    """Training on a client."""
    activation: ActivationConfig = ActivationConfig()
    """Sparsely activated LoRA: number of active blocks, and its growth."""
    lora: LoraConfig = LoraConfig()
    """LoRA pairs of the experts."""
    head: HeadConfig = HeadConfig()
    """Task heads."""
    statistics: StatisticsConfig = StatisticsConfig()
    """Feature statistics and the discriminant."""
    gate: GateConfig = GateConfig()
    """The gate between global and local expert."""
    mixture: MixtureConfig = MixtureConfig()
    """The mixture of both experts."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Validation and test."""
    privacy: PrivacyConfig = PrivacyConfig()
    """What the server may learn of a single client."""
    cache: CacheConfig = CacheConfig()
    """Kept outputs of the frozen prefix."""
    engine: EngineConfig = EngineConfig()
    """Processes that run the clients."""
    log: LogConfig = LogConfig()
    """Further logs."""
    compare: CompareConfig = CompareConfig()
    """Rows, seeds and grid of a comparison."""

    @model_validator(mode="before")
    @classmethod
    def _count_sites(cls, values: Any) -> Any:
        """With as many clients as there are named sites, where the number is not given."""
        named = values.get("federation") if isinstance(values, Mapping) else None
        sites = named.get("sites") if isinstance(named, Mapping) else None
        if not isinstance(sites, tuple | list) or not sites:
            return values
        held = values.get("partition") or {}
        if isinstance(held, Mapping) and held.get("clients") is None:
            return {**values, "partition": {**held, "clients": len(sites)}}
        return values

    @model_validator(mode="before")
    @classmethod
    def _spare_small_classes(cls, values: Any) -> Any:
        """With sites, sums over few samples stay there, where the config does not say how few."""
        engine = values.get("engine") if isinstance(values, Mapping) else None
        if not isinstance(engine, Mapping) or engine.get("name") != "flower":
            return values
        held = values.get("statistics") or {}
        if isinstance(held, Mapping) and "least" not in held:
            return {**values, "statistics": {**held, "least": LEAST_AT_SITES}}
        return values

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.partition.clients is not None:
            self.federation.check(self.partition.clients)
        if self.federation.sites and self.engine.name != "flower":
            raise ValueError("federation.sites: needs engine.name: flower")
        if self.deterministic and (self.engine.stack or 1) > 1:
            raise ValueError(
                "engine.stack: more than 1 needs `deterministic: false`, because the last bits differ"
            )
        if self.start_from is not None and self.lora.tiers:
            raise ValueError("start_from: cannot go with lora.tiers, which deals ranks anew")
        if self.join is not None:
            self._check_join(self.join)
        # of a plug-in's aggregator only its declaration says whether it can
        if self.lora.tiers and self.federation.aggregation in ("average", "exact", "freeze-a"):
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
        if self.gate.evidence == "posterior" and self.gate.features == "backbone":
            raise ValueError(
                "gate.evidence: `posterior` needs gate.features: global, which the global expert's head reads"
            )
        if self.evaluation.public is not None and self.evaluation.everyone is not None:
            raise ValueError(
                "evaluation.everyone: must be null with evaluation.public, all of whose samples count"
            )
        self._check_secure_sum()
        self._check_private()
        self._check_task()
        self._check_compare()
        return self

    def _check_join(self, name: str) -> None:
        if not is_name(name):
            raise ValueError(f"join: {excerpt(repr(name))} cannot be a folder's name")
        if self.start_from is None:
            raise ValueError("join: needs start_from, the folder of the run to join")
        if self.partition.rule != "files" or self.partition.clients != 1:
            raise ValueError("join: needs partition.rule: files and partition.clients: 1")
        if self.engine.name != "local" and self.federation.sites != (name,):
            raise ValueError("join: with sites, federation.sites must name this one alone")

    def _check_task(self) -> None:
        """Raise ValueError where a key does not go with the task."""
        if self.task == "classification":
            if self.data.prompt is not None:
                raise ValueError("data.prompt: needs task: text")
            if (self.compare.criterion or "").startswith("nll"):
                raise ValueError(f"compare.criterion: {self.compare.criterion} needs task: text")
            return
        labelled = self.partition.rule in ("dirichlet", "classes")
        for key, wrong, allowed in (
            ("data.image", self.data.image is not None, "null"),
            (
                "data.template",
                self.data.template is not None,
                "null; see data.prompt",
            ),
            ("partition.rule", labelled and self.data.label is None, "column, equal, files, or a data.label"),
            ("mixture.on", self.mixture.on != "probabilities", "probabilities"),
            ("gate.evidence", self.gate.evidence != "statistics", "its default: tokens are the evidence"),
            ("activation.blocks_local", self.activation.blocks_local == 0, "1 or more"),
            ("engine.name", self.engine.name != "local", "local"),
        ):
            if wrong:
                raise ValueError(f"{key}: does not go with task: text; allowed: {allowed}")

    def _check_private(self) -> None:
        """Raise ValueError where a key asks for what has no private release."""
        if self.privacy.unit is None:
            return
        for key, wrong, allowed in (
            ("task", self.task != "classification", "classification"),
            ("statistics.second_moment", self.statistics.second_moment is True, "auto or false"),
            ("statistics.least", self.statistics.least > 1, "1, since noise covers small classes"),
            ("start_from", self.start_from is not None, "null, since budgets are kept run by run"),
        ):
            if wrong:
                raise ValueError(f"{key}: does not go with privacy.unit; allowed: {allowed}")

    def _check_secure_sum(self) -> None:
        """Raise ValueError where the config asks for single answers, or for sums of too few clients."""
        if not self.privacy.secure_sum:
            return
        federation, least = self.federation, self.privacy.least
        if self.task != "classification":
            raise ValueError("privacy.secure_sum: does not go with task: text")
        if federation.uplink != "float32":
            raise ValueError(
                "federation.uplink: must be float32 with privacy.secure_sum, which rounds by itself"
            )
        if federation.robust != "none":
            raise ValueError(
                "federation.robust: must be none with privacy.secure_sum, where no single answer is seen"
            )
        if federation.aggregation not in ("average", "freeze-a"):
            raise ValueError("federation.aggregation: must be average or freeze-a with privacy.secure_sum")
        if self.statistics.rank is not None:
            raise ValueError(
                "statistics.rank: must be null with privacy.secure_sum: eigenvectors do not add up"
            )
        named = {
            "partition.clients": self.partition.clients,
            "federation.cohort": federation.cohort,
            "federation.cohort_local": federation.cohort_local,
            "statistics.clients": self.statistics.clients,
            "evaluation.clients": self.evaluation.clients,
        }
        for key, number in named.items():
            if number is not None and number < least:
                raise ValueError(f"{key}: must be at least privacy.least ({least}) with privacy.secure_sum")

    def _check_compare(self) -> None:
        """Raise ValueError unless every variant and every candidate gives a valid config on the same data."""
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
                        f"compare.{excerpt(where)}: {excerpt(fixed[0])} "
                        "must be the same in all that is compared"
                    )
                try:
                    changed(self, keys)
                except ConfigError as error:
                    raise ValueError(f"compare.{excerpt(where)}: {error}") from None

    def to_yaml(self) -> str:
        """The config as YAML, with every default filled in."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), plugin_folder: Path | None = None
) -> Config:
    """Read a config file (or mapping), apply `a.b=value` overrides, check, and fill in the defaults.

    Where there is no such file, an example of that name is read (`fedms.config.examples`).

    The modules in `plugins` are imported first. They are found on the import path and in `plugin_folder`.

    Raises:
        FedmsError: the file cannot be read.
        ConfigError: the text is not YAML, a plug-in cannot be imported, or a key, type, range or combination
            is wrong.
    """
    values = dict(source) if isinstance(source, Mapping) else read_yaml(config_file(Path(source)))
    for override in overrides:
        values = overridden(values, override)
    named = values.get("plugins")
    if isinstance(named, list | tuple) and all(isinstance(name, str) for name in named):
        import_plugins(named, plugin_folder)
    try:
        return Config.model_validate(tuples(values))
    except ValidationError as error:
        raise ConfigError(first_wrong(error, Config)) from None


def changed(config: Config, keys: Mapping[str, Any]) -> Config:
    """The config with these dotted keys replaced, as in `{"gate.prior": 0.9}`, and without its `compare`.

    Raises:
        ConfigError: a wrong key, type, range or combination.
    """
    values = config.model_dump(exclude={"compare"})
    for key, value in keys.items():
        values = placed(values, key, value, excerpt(key))
    return load_config(values)
