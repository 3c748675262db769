"""The text tower of a model of pictures and texts: where class names lie among the features of pictures.

CLIP (Radford et al. 2021, arXiv 2103.00020, section 3.1.4) and SigLIP (Zhai et al. 2023, arXiv 2303.15343)
train both towers towards one space. The tower is loaded, used once, and dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fedms.core.errors import ConfigError, FedmsError
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import Checkpoint, first_line


@dataclass(frozen=True)
class TextTower:
    """How a family's text tower is used."""

    model_class: str
    """Name of the class in `transformers`"""
    output: str
    """What of its output lies in the common space"""
    pooling: str
    """The pooling with which a picture's feature lies there"""
    padding: str | bool
    """How texts were padded when it was trained"""


TOWERS = {
    "clip": TextTower("CLIPTextModelWithProjection", "text_embeds", "cls", True),
    "siglip": TextTower("SiglipTextModel", "pooler_output", "own", "max_length"),
}
"""By the `model_type` of config.json."""


def check_tower(backbone: Backbone, key: str) -> None:
    """Raise unless class names can be embedded among the features of this backbone's pictures.

    Raises:
        ConfigError: the model has no text tower, or its pooling leads elsewhere.
    """
    checkpoint = cast(Checkpoint, backbone.checkpoint)
    tower = TOWERS.get(checkpoint.declared.model_type)
    if tower is None:
        allowed = "statistics, means, linear"
        raise ConfigError(
            f"{key} needs a text model, CLIP or SigLIP; with {checkpoint.name} allowed: {allowed}"
        )
    if backbone.pooling != tower.pooling:
        raise ConfigError(
            f"{key} needs model.pooling: {tower.pooling} with {checkpoint.name}, not {backbone.pooling}"
        )


@torch.no_grad()
def tower_embeddings(texts: Sequence[str], backbone: Backbone) -> Tensor:
    """Texts among the features of pictures, [n, d].

    Raises:
        FedmsError: the tower or its tokenizer cannot be read.
    """
    import transformers

    checkpoint = cast(Checkpoint, backbone.checkpoint)
    tower = TOWERS[checkpoint.declared.model_type]
    try:
        model: Any = getattr(transformers, tower.model_class).from_pretrained(
            checkpoint.source,
            config=checkpoint.declared.text_config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except Exception as error:  # transformers and safetensors raise many types for a damaged folder
        raise FedmsError(f"model {checkpoint.name}: no usable text tower: {first_line(error)}") from None
    longest = int(checkpoint.declared.text_config.max_position_embeddings)
    given = checkpoint.tokenizer(
        list(texts), padding=tower.padding, truncation=True, max_length=longest, return_tensors="pt"
    )
    given.pop("token_type_ids", None)
    found: Tensor = getattr(model.eval()(**given), tower.output)
    return found
