"""The families of encoders that are known: where each keeps its parts. A new family is one entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """Where a family of encoders keeps its parts."""

    kind: Literal["text", "image"]
    blocks: str
    """Path of the list of blocks."""
    targets: tuple[str, ...]
    """Linear layers of a block that carry LoRA by default: query and value."""
    before: tuple[str, ...] = ()
    """Modules between the embeddings and the first block."""
    after: tuple[str, ...] = ()
    """Modules between the last block and the feature, which work on single tokens."""
    embeddings: str = "embeddings"
    projection: str | None = None
    """Linear layer on the pooled feature (CLIP)."""


_BERT = Family("text", "encoder.layer", ("query", "value"))
_VIT = Family("image", "layers", ("q_proj", "v_proj"), after=("layernorm",))
_CLIP = Family(
    "image",
    "vision_model.encoder.layers",
    ("q_proj", "v_proj"),
    before=("vision_model.pre_layrnorm",),
    after=("vision_model.post_layernorm",),
    embeddings="vision_model.embeddings",
    projection="visual_projection",
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": Family("image", "encoder.layer", ("q_proj", "v_proj"), after=("layernorm",)),
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
