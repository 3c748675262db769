"""One expert and the frozen model as one transformers model, without adapters.

transformers' classification heads read the pooled feature as it is, and ours reads it scaled to one length.
ModernBERT's head alone can do that: it applies a linear layer and a layer norm before the classes. The
features of ModernBERT come from a layer norm without a bias, so that they lie in one hyperplane, orthogonal
to the inverse of its weights. A reflection moves that hyperplane to the vectors of mean zero, which the
layer norm of the head then scales to one length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fedms.config import Config
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import Checkpoint
from fedms.model.expert import Expert
from fedms.model.peft import layer_names

NO_HEAD = (
    "the head is in head.safetensors alone, because transformers' classification heads do not scale the "
    "feature to one length before they read it; predictor.py and fedms.load apply it"
)
STEEPNESS = 1000.0
"""Factor before the head's layer norm, so that the number that it adds to a variance does not show."""


def write_merged(
    folder: Path, arrays: Mapping[str, Tensor], backbone: Backbone, config: Config, labels: Sequence[str]
) -> str | None:
    """Write the model with this expert's pairs in its weights, and its tokenizer or image processor.

    Returns:
        None if the model has the expert's head; else why not.
    """
    checkpoint = cast(Checkpoint, backbone.checkpoint)
    model = merged(arrays, backbone, config.lora.alpha / config.lora.rank)
    whole = with_head(model, arrays, backbone, labels)
    (model if whole is None else whole).save_pretrained(folder)
    checkpoint = replace(checkpoint)  # one whose settings nobody has changed
    if backbone.kind == "text":
        tokenizer = checkpoint.tokenizer
        tokenizer.model_max_length = min(config.model.max_length, backbone.positions or 10**9)
        tokenizer.save_pretrained(folder)
    else:
        processor, size = checkpoint.image_processor, config.model.image_size
        if size:
            processor.size, processor.do_center_crop = {"height": size, "width": size}, False
        processor.save_pretrained(folder)
    return None if whole is not None else NO_HEAD


@torch.no_grad()
def merged(arrays: Mapping[str, Tensor], backbone: Backbone, scale: float) -> Any:
    """The model in float32, with each pair's update in its layer's weight."""
    model: Any = cast(Checkpoint, backbone.checkpoint).load_weights()
    paths = layer_names(backbone)
    for key, pair in Expert(arrays, scale).pairs().items():
        update = pair.scale * (pair.B.double() @ pair.A.double())
        if pair.residual is not None:
            update = update + pair.residual.double()
        weight = cast(Tensor, model.get_submodule(paths[key]).weight)
        transposed = paths[key] in backbone.transposed
        weight.copy_(weight.double() + (update.T if transposed else update).cpu())
    return model


@torch.no_grad()
def with_head(model: Any, arrays: Mapping[str, Tensor], backbone: Backbone, labels: Sequence[str]) -> Any:
    """The model with the expert's head as a classification model; None where no head of transformers fits."""
    import transformers

    plain = backbone.pooling in ("mean", "cls") and not backbone.prompt
    if getattr(model.config, "model_type", "") != "modernbert" or not plain:
        return None
    norm = model.final_norm
    if norm.bias is not None or not bool(norm.weight.abs().min() > 0):
        return None
    config = transformers.ModernBertConfig.from_dict(
        model.config.to_dict()
        | {
            "classifier_pooling": backbone.pooling,
            "classifier_activation": "linear",
            "classifier_bias": False,
            "norm_bias": False,
            "id2label": dict(enumerate(labels)),
            "label2id": {label: at for at, label in enumerate(labels)},
        }
    )
    whole: Any = transformers.ModernBertForSequenceClassification(config)
    whole.model = model
    size = backbone.feature_size
    normal = 1 / norm.weight.double()
    away = normal / normal.norm() - torch.full((size,), size**-0.5, dtype=torch.float64)
    reflection = torch.eye(size, dtype=torch.float64)
    if away.norm() > 0:
        away = away / away.norm()
        reflection -= 2 * torch.outer(away, away)
    head = {name: arrays[f"head.{name}"].double().cpu() for name in ("weight", "bias", "log_scale")}
    whole.head.dense.weight.copy_(STEEPNESS * reflection)
    whole.head.norm.weight.fill_(1.0)
    whole.classifier.weight.copy_(head["log_scale"].exp() * head["weight"] @ reflection.T)
    whole.classifier.bias.copy_(head["log_scale"].exp() * head["bias"])
    return whole.eval()
