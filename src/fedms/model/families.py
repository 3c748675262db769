"""The families of transformers whose modules are declared by hand.

Blocks and targets of all others are found (`model/discovery.py`), and the parent's own forward pass says how
blocks are called (`model/reentry.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """The module paths of one family of transformers."""

    kind: Literal["text", "image"]
    blocks: str = ""
    """Path of the list of blocks; empty: blocks are found, and called as the parent calls them."""
    targets: tuple[str, ...] = ()
    """Linear layers of a block that carry LoRA by default: query and value."""
    found: bool = False
    """Whether blocks were found rather than declared; set when the model is loaded."""
    causal: bool = False
    """Whether a token sees none after it. Then the last token makes the feature."""
    before: tuple[str, ...] = ()
    """Modules between the embeddings and the first block."""
    after: tuple[str, ...] = ()
    """Modules between the last block and the feature. They work on each token alone."""
    embeddings: str = "embeddings"
    pooler: str | None = None
    """The module that makes one feature of all tokens, for `model.pooling: own` (SigLIP)."""
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
_T5 = Family("text", model_class="T5EncoderModel")
_UMT5 = Family("text", model_class="UMT5EncoderModel")
_SIGLIP = Family("image", model_class="SiglipVisionModel", pooler="head")
REFUSED = {
    "albert": "its blocks are one and the same, so none can be active alone",
    "siglip2": "it reads pictures of any shape; name a SigLIP of one size, such as siglip2-base-patch16-224",
    "siglip2_vision_model": "it reads pictures of any shape; name a SigLIP of one size",
    "vit_mae": "it hides patches at random",
}
"""Types that cannot be run from a block upward, and why."""
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
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "t5": _T5,
    "mt5": _T5,
    "umt5": _UMT5,
}
"""The families by the `model_type` of their config.json."""


def refusal(declared: Any) -> str | None:
    """Why a model of this config.json cannot be run from a block upward; None if it may."""
    if any(isinstance(getattr(declared, key, None), list | tuple) for key in ("depths", "hidden_sizes")):
        return (
            "its blocks differ in width; name a model whose blocks are alike, such as ViT, DINOv3 or SigLIP"
        )
    return REFUSED.get(declared.model_type)


def register_family(model_type: str, family: Family) -> None:
    """Let models whose config.json declares this `model_type` load as this family.

    Raises:
        ValueError: another family is registered for this type.
    """
    if FAMILIES.get(model_type, family) != family:
        raise ValueError(f"model type {model_type!r} is registered already")
    FAMILIES[model_type] = family


def family_of(declared: Any) -> Family:
    """The family of a model by its declared config. This is the one place that decides how a model is taken
    apart.
    """
    from transformers.models.auto import modeling_auto

    model_type = declared.model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if hasattr(declared, "image_size") or not hasattr(declared, "vocab_size"):
        return Family("image")
    causal = model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return Family("text", causal=causal and model_type not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
