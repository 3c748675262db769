"""The known families of encoders: where each one keeps its modules. A new family is one entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """The module paths of one family of encoders."""

    kind: Literal["text", "image"]
    blocks: str
    """Path of the list of blocks."""
    targets: tuple[str, ...]
    """Linear layers of a block that carry LoRA by default: query and value."""
    before: tuple[str, ...] = ()
    """Modules between the embeddings and the first block."""
    after: tuple[str, ...] = ()
    """Modules between the last block and the feature. They work on each token alone."""
    embeddings: str = "embeddings"
    projection: str | None = None
    """Linear layer on the pooled feature (CLIP)."""
    model_class: str = "AutoModel"
    """Name of the class in `transformers` that loads the weights."""
    resizes_positions: bool = False
    """Whether the embeddings fit their positions to any image size without being told to."""
    packs: bool = False
    """Whether texts can be packed without padding (`model/packing.py`): a block calls the attention that
    transformers' `AttentionInterface` names, hands it the mask as it is, and has no positions of its own."""


_BERT = Family("text", "encoder.layer", ("query", "value"), packs=True)
_VIT = Family("image", "layers", ("q_proj", "v_proj"), after=("layernorm",))
_DINOV2 = Family("image", "encoder.layer", ("q_proj", "v_proj"), after=("layernorm",), resizes_positions=True)
_CLIP = Family(
    "image",
    "vision_model.encoder.layers",
    ("q_proj", "v_proj"),
    before=("vision_model.pre_layrnorm",),
    after=("vision_model.post_layernorm",),
    embeddings="vision_model.embeddings",
    projection="visual_projection",
    model_class="CLIPVisionModelWithProjection",
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _DINOV2,
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
}
"""The families by the `model_type` of their config.json."""


def register_family(model_type: str, family: Family) -> None:
    """Let models whose config.json declares this `model_type` load as this family.

    Raises:
        ValueError: another family is registered for this type.
    """
    if FAMILIES.get(model_type, family) != family:
        raise ValueError(f"model type {model_type!r} is registered already")
    FAMILIES[model_type] = family


def family_of(declared: Any) -> Family | None:
    """The family of a model by its declared config, or None if it is unknown.

    This is the one place that decides how a model is taken apart. A rule that finds the blocks of any
    transformer belongs here.
    """
    return FAMILIES.get(declared.model_type)
