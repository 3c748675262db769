"""One experiment, typed. Every key is documented where it is declared.

`load` reads a YAML file, applies `key=value` overrides and checks everything that can be known without
touching data or model. A wrong key, type, range or combination raises `ConfigError` with one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedms.config_federation import Federation
from fedms.config_keys import Section, first_wrong, overridden, placed, tuples
from fedms.errors import ConfigError
from fedms.paths import RULE, alike, is_name
from fedms.yaml_text import plain, read_yaml

LONGEST_ROW = 64
"""Bytes of the name of a comparison's row at most; it is part of a folder's name."""
LARGEST_GRID = 10_000
"""Combinations that a comparison tries for one row at most."""
SAME = ("seed", "data", "partition", "compare", "evaluation.everyone", "evaluation.validation")
"""Keys and sections in which the rows of a comparison must not differ, or it would pair results on different samples."""


class Model(Section):
    name: str = "minilm"
    """`minilm` (the embedded encoder), a Hugging Face hub name, or a local folder (`~` is your home). Safetensors only."""
    max_length: int = Field(64, ge=4, le=8192)
    """Longest text in tokens; what is beyond is cut. A model that has fewer positions is given no more than it has."""
    image_size: int | None = Field(None, ge=16, le=2048)
    """Pixels a side, a multiple of the model's patches; default: what the model's image processor says."""
    pooling: Literal["auto", "mean", "cls"] = "auto"
    """How block outputs become one feature: `auto` is mean for text, class token for images."""
    prompt_tokens: int = Field(8, ge=1, le=1024)
    """Soft prompt tokens, for method promptfl."""


class Data(Section):
    source: str = "assistant"
    """`assistant` (the embedded corpus), a Hugging Face `datasets` name (`name:subset` where it has several), a file (CSV, TSV,
    JSONL, Parquet) or a folder."""
    text: str | None = None
    """Column with the text; default: found by name (`text`, `sentence`, ...)."""
    image: str | None = None
    """Column with the image; default: found by type."""
    label: str | None = None
    """Column with the class; default: found by name (`label`, `category`, `intent`, ...)."""
    limit: int | None = Field(None, ge=1)
    """Keep at most so many samples of each split, drawn by the seed; default: all."""


class Partition(Section):
    clients: int = Field(20, ge=1, le=1_000_000)
    """Number of clients."""
    rule: Literal["dirichlet", "classes", "column", "equal"] = "dirichlet"
    """`dirichlet` label skew, `classes` per client, by a `column` (domain, user), or `equal`."""
    alpha: float | None = Field(0.1, gt=0)
    """Dirichlet concentration; small is skewed. With `column`: the skew among the clients of one value, null for none."""
    classes_per_client: int = Field(2, ge=1)
    """For rule `classes`."""
    column: str | None = None
    """For rule `column`: the column whose values are spread over the clients, `clients` / values to each."""
    validation: float = Field(0.1, gt=0, lt=0.5)
    """Share of a client's own training data kept for validation."""
    test: float = Field(0.2, gt=0, lt=0.5)
    """Share kept for the test where the source has no test split of its own."""
    min_samples: int = Field(10, ge=3)
    """Fewest samples beside its test samples that a client may hold, to train and validate; an allocation below it is drawn again."""


class Training(Section):
    epochs: int = Field(1, ge=1)
    """Passes over a client's own training data in one round."""
    batch_size: int = Field(32, ge=1)
    """Samples a step."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW, for the LoRA matrices."""
    head_learning_rate: float = Field(1e-4, gt=0)
    """AdamW, for the task head of the global expert; one that starts from zero wants 2e-3."""
    local_learning_rate: float = Field(1e-3, gt=0)
    """AdamW, for LoRA and head of a client's own expert."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    proximal: float = Field(0.1, ge=0)
    """Weight of the proximal term, for the methods that have one (mu of FedProx, lambda of Ditto)."""


class Tier(Section):
    share: float = Field(gt=0, le=1)
    """Share of the clients in this tier."""


class CapacityTier(Tier):
    blocks: int = Field(ge=1)
    """How many blocks such a client can train (its capacity)."""


class RankTier(Tier):
    rank: int = Field(ge=1, le=4096)
    """Rank of such a client's pairs."""


def _check_tiers(key: str, tiers: Sequence[Tier]) -> None:
    if tiers and abs(sum(tier.share for tier in tiers) - 1) > 1e-6:
        raise ValueError(f"{key}: the shares of the tiers must add up to 1")


class Activation(Section):
    rule: Literal["plateau", "every", "fixed"] = "plateau"
    """When the number of active blocks grows: on a plateau of the validation score, every so many rounds, or never."""
    blocks: int | Literal["all"] = 1
    """Active blocks at the start (k), or `all`."""
    blocks_local: int | Literal["all"] | None = None
    """Active blocks of the local stage of a sparsely activated method, or `all`; never fewer, and by default no more, than the
    global stage ended with."""
    step: int = Field(1, ge=1)
    """Blocks added at a time (delta)."""
    order: Literal["top-down", "bottom-up"] = "top-down"
    """Which blocks first; from the output down is what saves computation."""
    every: int = Field(2, ge=1)
    """Rounds between steps, for rule `every` (R)."""
    queue: int = Field(4, ge=2)
    """Validation scores compared, for rule `plateau` (Q): the newer half's mean against the older half's. With fewer rounds left than
    this, no block is added: it would cost a new prefix, and could not show what it is worth."""
    epsilon: float = Field(0.002, ge=0)
    """Gain in validation score below which it counts as a plateau."""
    min_rounds: int = Field(2, ge=1)
    """Fewest rounds at one number of blocks, for rule `plateau`."""
    max_rounds: int = Field(8, ge=1)
    """Most rounds at one number of blocks, for rule `plateau`."""
    maximum: int | None = Field(None, ge=1)
    """Never activate more blocks than this; default: all there are."""
    capacity: tuple[CapacityTier, ...] = ()
    """Tiers of clients by the number of blocks they can train; empty: everybody can train all."""

    @field_validator("blocks", "blocks_local", mode="before")
    @classmethod
    def _check_blocks(cls, value: object, info: ValidationInfo) -> object:
        allowed = "`all`" if info.field_name == "blocks" else "`all`, or null"
        if value != "all" and not (type(value) is int and value >= 1) and not (value is None and info.field_name == "blocks_local"):
            raise PydanticCustomError("blocks", "should be a whole number of at least 1, or {allowed}", {"allowed": allowed})
        return value

    @model_validator(mode="after")
    def _check(self) -> Activation:
        _check_tiers("capacity", self.capacity)
        if self.min_rounds > self.max_rounds:
            raise ValueError("min_rounds: must not exceed max_rounds")
        return self


class Lora(Section):
    rank: int = Field(8, ge=1, le=4096)
    """Rank r of the low-rank pairs."""
    tiers: tuple[RankTier, ...] = ()
    """Tiers of clients by the rank of their pairs, `rank` at most; empty: the same for all. Wants `federation.aggregation: svd`."""
    alpha: float = Field(16.0, gt=0)
    """Scale: the update is (alpha / rank) B A."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers inside a block that get a pair; default: query and value of the model's family."""

    @model_validator(mode="after")
    def _check(self) -> Lora:
        _check_tiers("tiers", self.tiers)
        if any(tier.rank > self.rank for tier in self.tiers):
            raise ValueError(f"tiers: no rank may be above lora.rank ({self.rank})")
        return self


class Head(Section):
    kind: Literal["statistics", "means", "text-init", "text", "linear"] = "statistics"
    """How the task head starts: federated discriminant, class means, class-name embeddings (trained or frozen), or zero."""
    label_prior: float = Field(0.9, ge=0, lt=1)
    """How far a local expert's bias at its start trusts the client's own label shares; 0: not at all."""


class Statistics(Section):
    shrinkage: float | None = Field(None, gt=0, le=1)
    """Share of the identity in the covariance; default: d / (d + n), at least 0.05."""
    rank: int | None = Field(None, ge=1)
    """Send the second moment as this many eigenvectors and a rest; default: the whole symmetric matrix."""
    clients: int | None = Field(None, ge=1)
    """At most so many clients, drawn by the seed, send their sums; default: all."""


class Gate(Section):
    objective: Literal["own-or-everyone", "likelihood"] = "own-or-everyone"
    """What the gate learns: is x from this client's distribution or everyone's; or the mixture's likelihood (collapses)."""
    evidence: Literal["statistics", "counts", "none"] = "statistics"
    """What log r is computed from: feature statistics, label counts alone, or nothing."""
    features: Literal["global", "backbone"] = "global"
    """What the gate reads: the pooled feature of the global expert, or of the frozen backbone."""
    prior: float = Field(0.5, ge=0, le=1)
    """How often a client meets its own kind of data: 1 is the local expert alone, 0 the global one."""
    network: bool = True
    """Whether a learned residual delta(u) may be added to the evidence where validation says it helps."""
    share: Literal["adapter", "none", "all"] = "adapter"
    """What of the gate is averaged over the clients."""
    adapter_rank: int = Field(16, ge=1, le=65_536)
    """Width of the federated gate adapter."""
    hidden: int = Field(32, ge=1, le=65_536)
    """Width of the private gate network."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW, for the gate adapter and network."""
    epochs: int = Field(5, ge=1)
    """Passes over own and drawn features in one round."""


class Mixture(Section):
    on: Literal["probabilities", "logits"] = "probabilities"
    """What of the two experts is mixed."""
    local_start: Literal["global", "scratch"] = "global"
    """Where the local expert starts."""
    interpolation: float | None = Field(None, ge=0, le=1)
    """How far the local expert goes from its start (0) to where training took it (1); default: chosen on all validation labels."""


class Evaluation(Section):
    every: int = Field(1, ge=1)
    """Rounds between validations of the global stage."""
    clients: int | None = Field(None, ge=1)
    """At most so many clients, drawn by the seed and always the same, validate what is shared; default: all."""
    everyone: int | None = Field(None, ge=1)
    """At most so many test samples of all clients, drawn by the seed, for accuracy_global; default: all."""
    validation: bool = False
    """Whether the finished models are also judged on validation data, for choosing without test data; `tune` does so in any case."""

    @property
    def splits(self) -> tuple[str, ...]:
        """What the finished models are judged on."""
        return ("validation", "test") if self.validation else ("test",)


class Cache(Section):
    enabled: bool = True
    """Keep the frozen prefix's output of every sample."""
    memory_mb: int = Field(2048, ge=0)
    """Budget over all workers, in memory, or the GPU's with `device: cuda`; beyond it the disk is used."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of what is kept: `bfloat16` takes half the room and rounds it (docs/results.md, cache-dtype, says what that costs). With
    `precision: bfloat16` it is that and rounds nothing."""
    disk_mb: int = Field(20480, ge=0)
    """Budget on disk over all workers; beyond it the prefix is computed again each time."""


class Engine(Section):
    name: Literal["local"] = "local"
    """`local`: on this machine."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Worker processes of one torch thread each; default: one for each core, unless it is measured (`deterministic`); 1 stays in this
    process."""
    stack: int | None = Field(None, ge=1, le=1024)
    """Clients that a process trains together in one batch, at most; default: one at a time, unless it is measured (`deterministic`)."""


class Log(Section):
    tensorboard: bool = False
    """Write TensorBoard event files, too, into the run folder's `tensorboard/`. Wants the extra `fedms[tensorboard]`."""


class Compare(Section):
    """What `fedms compare` lays side by side; a single run does not read it."""

    methods: tuple[str, ...] | None = None
    """Rows by name, from `fedms methods`; default: all of them."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """More rows: a name, and the keys in which it differs, as in `{"prior 0.9": {method: fedms, gate.prior: 0.9}}`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every row runs once with each."""
    baseline: str = "fedms"
    """The row that the others are measured against; the first row where this one is not compared."""
    tune: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """A grid to choose from for each row, on the first seed: key and candidates, as in `training.learning_rate: [3e-4, 1e-3]`."""
    criterion: Literal["accuracy_local", "accuracy_global"] = "accuracy_local"
    """The accuracy on validation data by which the grid is decided."""

    @model_validator(mode="after")
    def _check(self) -> Compare:
        for name in self.variants:
            if not is_name(name, LONGEST_ROW):
                raise ValueError(f"variants: {plain(repr(name))} cannot name a row: no {RULE}, at most {LONGEST_ROW} bytes")
        if same := alike(self.variants):
            raise ValueError(f"variants: {plain(same[0])} and {plain(same[1])} differ in nothing that every file system tells apart")
        for key, values in {"methods": self.methods or (), "seeds": self.seeds, **{f"tune.{k}": v for k, v in self.tune.items()}}.items():
            if twice := [value for place, value in enumerate(values) if value in values[:place]]:
                raise ValueError(f"{key}: {plain(str(twice[0]))} comes twice")
            if not values and key != "methods":
                raise ValueError(f"{key}: must name at least one")
        if math.prod(map(len, self.tune.values())) > LARGEST_GRID:
            raise ValueError(f"tune: has more than {LARGEST_GRID:,} combinations")
        if negative := [seed for seed in self.seeds if seed < 0]:
            raise ValueError(f"seeds: must not be negative, as {negative[0]} is")
        if self.methods is not None and not self.methods and not self.variants:
            raise ValueError("methods: must name at least one where there are no variants")
        return self


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
    model: Model = Model()
    data: Data = Data()
    partition: Partition = Partition()
    federation: Federation = Federation()
    training: Training = Training()
    activation: Activation = Activation()
    lora: Lora = Lora()
    head: Head = Head()
    statistics: Statistics = Statistics()
    gate: Gate = Gate()
    mixture: Mixture = Mixture()
    evaluation: Evaluation = Evaluation()
    cache: Cache = Cache()
    engine: Engine = Engine()
    log: Log = Log()
    compare: Compare = Compare()

    @model_validator(mode="after")
    def _check(self) -> Config:
        self.federation.check(self.partition.clients)
        if self.deterministic and (self.engine.stack or 1) > 1:
            raise ValueError("engine.stack: more than 1 wants `deterministic: false`, since the last bits differ")
        if self.lora.tiers and self.federation.aggregation != "svd":
            raise ValueError("lora.tiers: pairs of different ranks can only be averaged with federation.aggregation: svd")
        if self.partition.rule == "column" and self.partition.column is None:
            raise ValueError("partition.column: needed when partition.rule is `column`")
        if self.partition.rule == "dirichlet" and self.partition.alpha is None:
            raise ValueError("partition.alpha: needed when partition.rule is `dirichlet`")
        if self.gate.objective == "likelihood" and not self.gate.network:
            raise ValueError("gate.network: must be true when gate.objective is `likelihood`, which trains nothing else")
        if self.gate.objective == "own-or-everyone" and self.gate.evidence == "none" and not self.gate.network:
            raise ValueError("gate.network: must be true when gate.evidence is `none`, or the gate knows nothing")
        self._check_compare()
        return self

    def _check_compare(self) -> None:
        """Every variant and every candidate makes a whole experiment, on the same samples."""
        changes = {f"variants.{name}": [keys] for name, keys in self.compare.variants.items()}
        changes |= {f"tune.{key}": [{key: value} for value in values] for key, values in self.compare.tune.items()}
        for where, candidates in changes.items():
            for keys in candidates:
                fixed = [key for key in keys if key.split(".")[0] in SAME or key in SAME or (key == "method" and where.startswith("tune."))]
                if fixed:
                    raise ValueError(f"compare.{plain(where)}: {plain(fixed[0])} must be the same in all that is compared")
                try:
                    changed(self, keys)
                except ConfigError as error:
                    raise ValueError(f"compare.{plain(where)}: {error}") from None

    def to_yaml(self) -> str:
        """The experiment with every default filled in."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
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
        values = placed(values, key, value, plain(key))
    return load(values)
