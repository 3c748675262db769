"""An expert's LoRA pairs in the format of Hugging Face PEFT, written without PEFT.

A pair is written as it is. What exact aggregation keeps in a `residual` has no place in the format. Such a
layer gets a pair of higher rank (min(out, in) at most): the singular value decomposition of its whole update,
which `rank_pattern` and `alpha_pattern` name. It is read as that pair, without a residual.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedms.config.sections import LoraConfig
from fedms.core.errors import FedmsError
from fedms.model.backbone import Backbone
from fedms.model.expert import Expert
from fedms.model.lora import Pair
from fedms.model.peft import CONFIG, HEAD_CONFIG, HEAD_WEIGHTS, PREFIX, WEIGHTS, layer_names

HEAD_FORMULA = "logits = exp(log_scale) (weight x + bias), x the pooled feature scaled to length sqrt(d)"
NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest are float32 noise of the sums."""


def to_peft(
    arrays: Mapping[str, Tensor], backbone: Backbone, lora: LoraConfig, base_model: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of `adapter_model.safetensors` and the content of `adapter_config.json`.

    `base_model` is the hub name, or the base name of the folder, that the configuration will name. Layers are
    named in full, so that PEFT changes no layer without a pair. The model to load the adapter into is that of
    the family's `model_class`.

    Raises:
        FedmsError: there is no pair.
    """
    scale = lora.alpha / lora.rank
    paths = layer_names(backbone)
    pairs = {paths[key]: _factors(pair) for key, pair in sorted(Expert(arrays, scale).pairs().items())}
    if not pairs:
        raise FedmsError("this expert has no LoRA pair, so there is nothing that PEFT could load")
    tensors = {}
    for path, (A, B) in pairs.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = B
    raised = {path: A.shape[0] for path, (A, _) in pairs.items() if A.shape[0] != lora.rank}
    model = type(backbone.model)
    family = backbone.family
    plain = family.kind == "image" and (family.found or family.projection is not None)
    return tensors, {
        "peft_type": "LORA",
        # a task type would have PEFT pass `input_ids`, which an image tower need not take
        "task_type": None if plain else "FEATURE_EXTRACTION",
        "auto_mapping": {"base_model_class": model.__name__, "parent_library": model.__module__}
        if plain
        else None,
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": _whole(lora.alpha),
        "target_modules": list(pairs),
        "rank_pattern": raised,
        "alpha_pattern": {path: _whole(scale * rank) for path, rank in raised.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": bool({*pairs} & {*backbone.transposed}),
        "init_lora_weights": True,
        "inference_mode": True,
    }


def write_peft(
    folder: Path,
    arrays: Mapping[str, Tensor],
    backbone: Backbone,
    lora: LoraConfig,
    base_model: str,
    labels: list[str],
    base_weights: str | None = None,
) -> None:
    """Write adapter and head into a new folder; `base_weights` is the digest of the frozen model's."""
    tensors, config = to_peft(arrays, backbone, lora, base_model)
    folder.mkdir(parents=True)
    save_plain(tensors, folder / WEIGHTS)
    _write_json(folder / CONFIG, config)
    write_head(folder, arrays, backbone, labels, base_weights)


def write_head(
    folder: Path,
    arrays: Mapping[str, Tensor],
    backbone: Backbone,
    labels: list[str],
    base_weights: str | None = None,
) -> None:
    """Write an expert's head into a folder that is there."""
    head = {name.removeprefix("head."): array for name, array in arrays.items() if name.startswith("head.")}
    save_plain(head, folder / HEAD_WEIGHTS)
    described = {
        "formula": HEAD_FORMULA,
        "pooling": backbone.pooling,
        "feature_size": backbone.feature_size,
        "labels": labels,
        **({} if base_weights is None else {"base_weights": base_weights}),
    }
    _write_json(folder / HEAD_CONFIG, described)


def save_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file as other libraries expect it."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # `save_file` would make a file that only its owner can read
    path.write_bytes(save(plain, metadata={"format": "pt"}))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _factors(pair: Pair) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r], of which scale B A is the whole update of the pair."""
    if pair.residual is None:
        return pair.A, pair.B
    exact = pair.residual.double() + pair.scale * (pair.B.double() @ pair.A.double())
    U, S, V = torch.linalg.svd(exact / pair.scale, full_matrices=False)
    rank = max(1, int(S.gt(NEGLIGIBLE * S[0]).sum()))
    root = S[:rank].sqrt()
    return (root[:, None] * V[:rank]).float(), (U[:, :rank] * root).float()


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
