"""The sections of a config. The docstring of each key says what it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeGuard

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Device = Literal["auto", "cpu", "cuda", "mps"]
LARGEST_INTEGER = 2**53
"""Largest whole number. Some readers of JSON cannot tell larger ones apart."""


class Section(BaseModel):
    """A group of keys. Unknown keys are errors, and types are not converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _check_whole(cls, value: object) -> object:
        if isinstance(value, int) and value > LARGEST_INTEGER:
            raise PydanticCustomError("whole", "should be at most {largest}", {"largest": LARGEST_INTEGER})
        return value


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class ModelConfig(Section):
    """The frozen backbone and its input."""

    name: str = "minilm"
    """`minilm` (the embedded encoder), a name on the Hugging Face hub, or a local folder (`~` is the home
    folder). Weights must be safetensors."""
    max_length: int = Field(64, ge=4, le=8192)
    """Longest text in tokens; the rest is cut. The number of positions of the model is a further limit."""
    blocks: str | None = None
    """Path of the list of blocks in the model, such as `encoder.layer`; default: it is found."""
    image_size: int | None = Field(None, ge=16, le=2048)
    """Side of an image in pixels, a multiple of the patch size; default: the size in the model's image
    processor."""
    pooling: Literal["auto", "mean", "cls", "last", "own"] = "auto"
    """How the tokens of a block output become one feature: `mean`, `cls` (the first token), `last`, or `own`
    (by SigLIP's attention head, so that the feature lies where its text tower has class names). `auto`
    is the pooling of a sentence-transformers model (1_Pooling/config.json), else the last token for language
    models, the mean for other text models, the class token for images, and the mean where there is none."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """How attention is computed: `eager` (one product after another) or `sdpa` (PyTorch's fused attention,
    which is faster and needs less memory); `auto` is what transformers chooses. The last bits differ."""
    prompt_tokens: int = Field(8, ge=1, le=1024)
    """Number of soft prompt tokens, for method `promptfl`."""
    adapter: str | None = None
    """Folder of a PEFT adapter of rank `lora.rank` from which the global expert's pairs start; default: a
    random A, and a B of zeros. A block gets its pairs when it is activated."""


class TrainingConfig(Section):
    """Training on a client."""

    epochs: int = Field(1, ge=1)
    """Passes over a client's own training data in each round."""
    batch_size: int = Field(8, ge=1)
    """Samples in each training step."""
    learning_rate: float = Field(3e-3, gt=0)
    """Learning rate of AdamW for the LoRA matrices."""
    head_learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of AdamW for the head of the global expert. A head that starts from zero needs about
    2e-3."""
    local_learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of AdamW for the LoRA matrices and the head of the local expert."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    proximal: float = Field(0.1, ge=0)
    """Weight of the proximal term, for methods that have one (mu of FedProx, lambda of Ditto)."""
    gradient_checkpointing: bool = False
    """Whether the values within active blocks are computed again in the backward pass and not kept until
    then. That needs less memory, and one more forward pass of these blocks; results are the same to the bit.
    """


class Tier(Section):
    """A group of clients with the same capacity."""

    share: float = Field(gt=0, le=1)
    """Share of the clients in this tier."""


class CapacityTier(Tier):
    """A tier by the number of blocks."""

    blocks: int = Field(ge=1)
    """Capacity: the number of blocks that a client of this tier can train."""


class RankTier(Tier):
    """A tier by the rank of LoRA pairs."""

    rank: int = Field(ge=1, le=4096)
    """Rank of the LoRA pairs of a client of this tier."""


def _check_tiers(key: str, tiers: Sequence[Tier]) -> None:
    if tiers and abs(sum(tier.share for tier in tiers) - 1) > 1e-6:
        raise ValueError(f"{key}: the shares of the tiers must add up to 1")


class ActivationConfig(Section):
    """Sparsely activated LoRA: the number of active blocks, and its growth."""

    rule: Literal["plateau", "every", "fixed", "warm"] = "plateau"
    """When the number of active blocks changes: it grows on a plateau of the validation score or every
    `every` rounds, never (`fixed`), or all blocks are active for the first `warm_rounds` rounds and `blocks`
    after them (`warm`); then the pairs of the lower blocks become part of the frozen prefix."""
    blocks: int | Literal["all"] = 1
    """Number of active blocks at the start (k), or `all`; with rule `warm` the number after `warm_rounds`
    rounds."""
    warm_rounds: int = Field(2, ge=1)
    """Rounds with all blocks, for rule `warm`."""
    blocks_local: int | Literal["all"] | None = None
    """Number of active blocks in the local stage of a sparsely activated method, or `all`. It is at least the
    number at the end of the global stage, which is also the default. 0 trains heads alone, on features that
    are computed once."""
    step: int = Field(1, ge=1)
    """Blocks added in each step (delta)."""
    order: Literal["top-down", "bottom-up"] = "top-down"
    """Order in which blocks become active. `top-down`, from the output, saves computation."""
    every: int = Field(2, ge=1)
    """Rounds between two steps, for rule `every` (R)."""
    queue: int = Field(4, ge=2)
    """Number of validation scores that rule `plateau` compares (Q): the mean of the newer half with the mean
    of the older half. If fewer rounds than this are left, no block is added: it would cost a new prefix, and
    the rounds left could not show its gain."""
    epsilon: float = Field(0.002, ge=0)
    """A smaller gain in validation score counts as a plateau."""
    min_rounds: int = Field(2, ge=1)
    """Fewest rounds with the same number of blocks, for rule `plateau`."""
    max_rounds: int = Field(8, ge=1)
    """Most rounds with the same number of blocks, for rule `plateau`."""
    maximum: int | None = Field(None, ge=1)
    """Largest number of active blocks; default: all blocks of the model."""
    capacity: tuple[CapacityTier, ...] = ()
    """Tiers of clients by the number of blocks that they can train; empty: every client can train all
    blocks."""

    @field_validator("blocks", "blocks_local", mode="before")
    @classmethod
    def _check_blocks(cls, value: object, info: ValidationInfo) -> object:
        local = info.field_name == "blocks_local"
        least, allowed = (0, "`all`, or null") if local else (1, "`all`")
        if value != "all" and not (type(value) is int and value >= least) and not (value is None and local):
            raise PydanticCustomError(
                "blocks",
                "should be a whole number of at least {least}, or {allowed}",
                {"least": least, "allowed": allowed},
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> ActivationConfig:
        _check_tiers("capacity", self.capacity)
        if self.min_rounds > self.max_rounds:
            raise ValueError("min_rounds: must not exceed max_rounds")
        return self


class LoraConfig(Section):
    """The LoRA pairs of the experts."""

    rank: int = Field(8, ge=1, le=4096)
    """Rank r of the LoRA pairs."""
    tiers: tuple[RankTier, ...] = ()
    """Tiers of clients by the rank of their LoRA pairs, at most `rank`; empty: the same rank for all. Needs
    `federation.aggregation: svd`."""
    alpha: float = Field(16.0, gt=0)
    """Scale of the update, which is (alpha / rank) B A."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers in a block that get a LoRA pair, or `all-linear` alone; default: query and
    value, or the one layer of both."""

    @model_validator(mode="after")
    def _check(self) -> LoraConfig:
        _check_tiers("tiers", self.tiers)
        if any(tier.rank > self.rank for tier in self.tiers):
            raise ValueError(f"tiers: no rank may be above lora.rank ({self.rank})")
        return self


class HeadConfig(Section):
    """The task heads."""

    kind: Literal["statistics", "means", "text-init", "text", "linear"] = "statistics"
    """How the head starts: `statistics` (federated discriminant), `means` (class means), `text-init`
    (class-name embeddings, then trained), `text` (class-name embeddings, frozen) or `linear` (zeros). Class
    names are embedded by a text model, or by the text tower of CLIP or SigLIP, once."""
    prompt: tuple[str, ...] = ()
    """Templates in which class names are embedded, such as `a photo of a {class}.`; several are averaged.
    Default: the name alone for a text model, `a photo of a {class}.` for pictures."""
    rederive: Literal["auto", "never"] = "auto"
    """Whether the global expert's head may become the discriminant of the trained features, or a mixture of
    both heads, where the likelihood of the clients' validation labels says so. It applies to heads of kind
    `statistics` and `means`."""
    label_prior: float | Literal["auto", "none"] = "auto"
    """How many samples everyone's label shares count in a client's label prior, which enters the first bias
    of its local expert. `auto` chooses 1, 3 or 10 by the likelihood of the clients' validation labels; `none`
    leaves the label prior out."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each.count("{class}") != 1 or set("{}") & set(each.replace("{class}", "")):
                raise PydanticCustomError(
                    "prompt", "should be texts with one `{{class}}`, such as `a photo of a {{class}}.`"
                )
        return value

    @field_validator("label_prior", mode="before")
    @classmethod
    def _check_label_prior(cls, value: object) -> object:
        if value not in ("auto", "none") and not (_is_number(value) and value > 0):
            raise PydanticCustomError("label_prior", "should be a number above 0, `auto` or `none`")
        return value


class StatisticsConfig(Section):
    """Federated feature statistics and the discriminant."""

    shrinkage: float | Literal["auto"] = "auto"
    """Weight of the identity in the covariance. `auto` chooses it by the likelihood of the clients'
    validation labels."""
    anchor: float = Field(0.0, ge=0)
    """Weight of a class's name in the mean of its frozen features, in samples; 0 ignores names. Needs a text
    model."""
    second_moment: bool | Literal["auto"] = "auto"
    """Whether clients send the second moment of their features, which names their training samples
    (docs/privacy.md). `auto` sends it in secure sums alone, and else estimates the covariance from the
    differences between the clients' class means. `false` neither sends nor estimates: the covariance is a
    multiple of the identity.
    """
    least: int = Field(1, ge=1)
    """Fewest samples over which a client sends a sum: smaller classes are left out of its feature sums, and
    to a client with a smaller validation split all candidates of a choice are level. Default: 5 with
    `engine.name: flower`, 1 on this machine (docs/privacy.md shows what it costs)."""
    rank: int | None = Field(None, ge=1)
    """Number of eigenvectors in which the second moment is sent, with one rest; default: the whole symmetric
    matrix."""
    clients: int | None = Field(None, ge=1)
    """Largest number of clients that send sums, drawn with the seed; default: all clients."""

    @field_validator("shrinkage", mode="before")
    @classmethod
    def _check_shrinkage(cls, value: object) -> object:
        if value != "auto" and not (_is_number(value) and 0 < value <= 1):
            raise PydanticCustomError("shrinkage", "should be above 0 and at most 1, or `auto`")
        return value

    @model_validator(mode="after")
    def _check(self) -> StatisticsConfig:
        if self.second_moment is False and self.shrinkage not in ("auto", 1):
            raise ValueError("shrinkage: must be 1 or `auto` with `second_moment: false`")
        return self


class GateConfig(Section):
    """The gate between the global and the local expert."""

    objective: Literal["own-or-everyone", "likelihood"] = "own-or-everyone"
    """What the gate learns: whether an input comes from own data or everyone's data, or to raise the
    likelihood of the mixture. The gate collapses with `likelihood`."""
    evidence: Literal["statistics", "posterior", "counts", "none"] = "statistics"
    """Source of the evidence log r: feature statistics, the same with the global expert's posterior in place
    of the discriminant's, label counts alone, or none."""
    features: Literal["global", "backbone"] = "global"
    """Input of the gate: the pooled feature of the global expert, or of the frozen backbone."""
    prior: float = Field(0.5, ge=0, le=1)
    """Prior probability that an input is own data. 1 uses the local expert alone, 0 the global expert
    alone."""
    network: bool = True
    """Whether a learned residual delta(u) may be added to the evidence, if it helps on validation data."""
    share: Literal["adapter", "none", "all"] = "adapter"
    """The part of the gate that is averaged over clients."""
    adapter_rank: int = Field(16, ge=1, le=65_536)
    """Width of the gate adapter, which is federated."""
    hidden: int = Field(32, ge=1, le=65_536)
    """Width of the gate network, which is private."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of AdamW for the gate adapter and the gate network."""
    epochs: int = Field(5, ge=1)
    """Passes over own and drawn features in each round."""


class MixtureConfig(Section):
    """The mixture of the global and the local expert."""

    on: Literal["probabilities", "logits"] = "probabilities"
    """The outputs of the two experts that are mixed."""
    local_start: Literal["global", "scratch"] = "global"
    """Start of the local expert: the global expert, or from scratch."""
    interpolation: float | None = Field(None, ge=0, le=1)
    """Position of the local expert between its start (0) and the end of its training (1); default: chosen on
    the validation data of all clients."""


class EvaluationConfig(Section):
    """Validation and test."""

    every: int = Field(1, ge=1)
    """Rounds between two validations in the global stage."""
    clients: int | None = Field(None, ge=1)
    """Largest number of clients that validate the shared model, drawn once with the seed; default: all
    clients."""
    everyone: int | None = Field(None, ge=1)
    """Largest number of test samples of everyone's data, drawn with the seed, for accuracy_global; default:
    all samples."""
    public: str | None = None
    """File of test samples that everybody may hold, for accuracy_global in place of everyone's test data; its
    columns are those of the data. Real sites hold a copy; without one accuracy_global is null there."""
    public_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of that file; default: of the file as it is found when the run starts."""
    validation: bool = False
    """Whether the final models are also scored on validation data, to choose settings without test data.
    `tune` always does so."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits on which the final models are scored."""
        return ("validation", "test") if self.validation else ("test",)

    @property
    def public_splits(self) -> tuple[str, ...]:
        """Those of everyone's splits that a client holds who does not hold the others' samples."""
        return ("test",) if self.public is not None else ()


class CacheConfig(Section):
    """Kept outputs of the frozen prefix."""

    enabled: bool = True
    """Whether outputs of the frozen prefix are kept for every sample."""
    memory_mb: int = Field(2048, ge=0)
    """Memory for kept outputs over all workers, in MiB; on the GPU with `device: cuda`. Outputs beyond it go
    to disk."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of kept outputs. `bfloat16` needs half the memory and rounds them (docs/results.md,
    cache-dtype, shows the effect). With `precision: bfloat16` the outputs have this type already."""
    disk_mb: int = Field(20480, ge=0)
    """Disk space for kept outputs over all workers, in MiB. Outputs beyond it are computed again each
    time."""


class LogConfig(Section):
    """Logs beside the run folder's own files."""

    tensorboard: bool = False
    """Whether TensorBoard event files are also written, into the run folder's `tensorboard/`. Needs the extra
    `fedms[tensorboard]`."""
    wandb: bool = False
    """Whether Weights & Biases is also told, by `fedms[wandb]`. WANDB_MODE=offline keeps it in `wandb/` of
    WANDB_DIR, or of the folder where the command is given."""
    mlflow: bool = False
    """Whether MLflow is also told, by `fedms[mlflow]`: at MLFLOW_TRACKING_URI, else in the run folder's
    `mlflow/`, which `MLFLOW_ALLOW_FILE_STORE=true mlflow ui` shows."""
    trackio: bool = False
    """Whether Trackio is also told, by `fedms[trackio]`."""
