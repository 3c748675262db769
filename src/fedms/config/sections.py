from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedms.core.formatting import plain
from fedms.core.paths import RULE, alike, is_name

LARGEST = 2**53
"""Whole numbers at most: beyond it not every reader of JSON tells them apart."""


class Section(BaseModel):
    """A group of keys. Unknown keys are refused, types are not guessed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _check_whole(cls, value: object) -> object:
        if isinstance(value, int) and value > LARGEST:
            raise PydanticCustomError("whole", "should be at most {largest}", {"largest": LARGEST})
        return value


class FederationConfig(Section):
    cohort: int = Field(10, ge=1)
    """Clients asked in a round of the global stage."""
    cohort_local: int | None = Field(None, ge=1)
    """Clients asked in a round of the local stage; default: all of them."""
    oversample: int = Field(0, ge=0)
    """Further clients asked in a round, as far as there are more, in case some fail: of those that answer, it takes a cohort's number."""
    quorum: int = Field(1, ge=1)
    """Answers that a round needs; with fewer, other clients are asked in place of those that failed."""
    deadline_seconds: float | None = Field(None, gt=0, lt=1e9)
    """How long we wait for a client's answer, whatever it was asked; default: for ever. On this machine, where clients take turns, its
    time begins with its turn."""
    attempts: int = Field(3, ge=1)
    """How often clients are asked for the answers that are needed, the first time included, before the run stops."""
    rounds_global: int = Field(10, ge=0, le=1_000_000)
    """Rounds of the first stage (T1)."""
    rounds_local: int = Field(3, ge=0, le=1_000_000)
    """Rounds of the second stage (T2)."""
    aggregation: Literal["average", "exact", "freeze-a", "svd"] = "average"
    """`average` (A and B apart), `exact` (the mean of the products BA, nothing lost), `freeze-a` (train B only), `svd` (the mean of
    the products, cut to the rank)."""
    robust: Literal["none", "median", "trimmed-mean", "multi-krum", "norm-clip"] = "none"
    """What stands in the mean's place where clients may lie; with `aggregation` `average` or `freeze-a`."""
    liars: float = Field(0.2, ge=0, lt=0.5)
    """Share of a round's clients that may lie: what `trimmed-mean` cuts at each end, and `multi-krum` leaves out."""

    def check(self, clients: int) -> None:
        """ValueError where there are not as many clients as a round asks, or a round does not ask as many as it needs."""
        for key in ("cohort", "cohort_local"):
            value = getattr(self, key)
            if value is not None and value > clients:
                raise ValueError(f"federation.{key}: {value} is more than partition.clients ({clients})")
            if value is not None and value < self.quorum:
                raise ValueError(f"federation.quorum: {self.quorum} is more than federation.{key} ({value})")


LONGEST_ROW = 64
"""Bytes of the name of a comparison's row at most; it is part of a folder's name."""
LARGEST_GRID = 10_000
"""Combinations that a comparison tries for one row at most."""


class ModelConfig(Section):
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
    adapter: str | None = None
    """Folder of a PEFT adapter of rank `lora.rank` from which the global expert's pairs start; default: a random
    A, and a B of zeros. A block gets its pairs when it is activated."""


class DataConfig(Section):
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


class PartitionConfig(Section):
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


class TrainingConfig(Section):
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


class ActivationConfig(Section):
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
        if (
            value != "all"
            and not (type(value) is int and value >= 1)
            and not (value is None and info.field_name == "blocks_local")
        ):
            raise PydanticCustomError(
                "blocks", "should be a whole number of at least 1, or {allowed}", {"allowed": allowed}
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> ActivationConfig:
        _check_tiers("capacity", self.capacity)
        if self.min_rounds > self.max_rounds:
            raise ValueError("min_rounds: must not exceed max_rounds")
        return self


class LoraConfig(Section):
    rank: int = Field(8, ge=1, le=4096)
    """Rank r of the low-rank pairs."""
    tiers: tuple[RankTier, ...] = ()
    """Tiers of clients by the rank of their pairs, `rank` at most; empty: the same for all. Wants `federation.aggregation: svd`."""
    alpha: float = Field(16.0, gt=0)
    """Scale: the update is (alpha / rank) B A."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers inside a block that get a pair; default: query and value of the model's family."""

    @model_validator(mode="after")
    def _check(self) -> LoraConfig:
        _check_tiers("tiers", self.tiers)
        if any(tier.rank > self.rank for tier in self.tiers):
            raise ValueError(f"tiers: no rank may be above lora.rank ({self.rank})")
        return self


class HeadConfig(Section):
    kind: Literal["statistics", "means", "text-init", "text", "linear"] = "statistics"
    """How the task head starts: federated discriminant, class means, class-name embeddings (trained or frozen), or zero."""
    label_prior: float = Field(0.9, ge=0, lt=1)
    """How far a local expert's bias at its start trusts the client's own label shares; 0: not at all."""


class StatisticsConfig(Section):
    shrinkage: float | None = Field(None, gt=0, le=1)
    """Share of the identity in the covariance; default: d / (d + n), at least 0.05."""
    rank: int | None = Field(None, ge=1)
    """Send the second moment as this many eigenvectors and a rest; default: the whole symmetric matrix."""
    clients: int | None = Field(None, ge=1)
    """At most so many clients, drawn by the seed, send their sums; default: all."""


class GateConfig(Section):
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


class MixtureConfig(Section):
    on: Literal["probabilities", "logits"] = "probabilities"
    """What of the two experts is mixed."""
    local_start: Literal["global", "scratch"] = "global"
    """Where the local expert starts."""
    interpolation: float | None = Field(None, ge=0, le=1)
    """How far the local expert goes from its start (0) to where training took it (1); default: chosen on all validation labels."""


class EvaluationConfig(Section):
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


class CacheConfig(Section):
    enabled: bool = True
    """Keep the frozen prefix's output of every sample."""
    memory_mb: int = Field(2048, ge=0)
    """Budget over all workers, in memory, or the GPU's with `device: cuda`; beyond it the disk is used."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of what is kept: `bfloat16` takes half the room and rounds it (docs/results.md, cache-dtype, says what that costs). With
    `precision: bfloat16` it is that and rounds nothing."""
    disk_mb: int = Field(20480, ge=0)
    """Budget on disk over all workers; beyond it the prefix is computed again each time."""


class EngineConfig(Section):
    name: Literal["local"] = "local"
    """`local`: on this machine."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Worker processes of one torch thread each; default: one for each core, unless it is measured (`deterministic`); 1 stays in this
    process."""
    stack: int | None = Field(None, ge=1, le=1024)
    """Clients that a process trains together in one batch, at most; default: one at a time, unless it is measured (`deterministic`)."""


class LogConfig(Section):
    tensorboard: bool = False
    """Write TensorBoard event files, too, into the run folder's `tensorboard/`. Wants the extra `fedms[tensorboard]`."""


class CompareConfig(Section):
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
    def _check(self) -> CompareConfig:
        for name in self.variants:
            if not is_name(name, LONGEST_ROW):
                raise ValueError(
                    f"variants: {plain(repr(name))} cannot name a row: no {RULE}, at most {LONGEST_ROW} bytes"
                )
        if same := alike(self.variants):
            raise ValueError(
                f"variants: {plain(same[0])} and {plain(same[1])} differ in nothing that every file system tells apart"
            )
        for key, values in {
            "methods": self.methods or (),
            "seeds": self.seeds,
            **{f"tune.{k}": v for k, v in self.tune.items()},
        }.items():
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
