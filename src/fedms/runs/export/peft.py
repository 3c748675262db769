"""An expert's LoRA pairs to and from the format of Hugging Face PEFT, written without PEFT.

PEFT adds (lora_alpha / r) B A to a weight, as we do, so a pair goes over as it is. What exact aggregation keeps in a
`residual` has no place there: such a layer gets a pair of higher rank, the singular value decomposition of its whole update
(at most min(out, in)), named in `rank_pattern` and `alpha_pattern`. It comes back as that pair, without a residual.

PEFT knows no head like ours, so `head.safetensors` and `head.json` (how it is applied) lie beside the adapter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedms.config.sections import LoraConfig
from fedms.core.errors import FedmsError
from fedms.model.arrays import Arrays
from fedms.model.backbone import Backbone
from fedms.model.expert import Expert
from fedms.model.lora import Pair

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
HEAD_WEIGHTS, HEAD_CONFIG = "head.safetensors", "head.json"
PREFIX = "base_model.model."
HEAD_FORMULA = "logits = exp(log_scale) (weight x + bias), x the pooled feature scaled to length sqrt(d)"
NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest are float32 noise of the sums."""
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways in which PEFT starts an adapter that leave the backbone's weights as they are."""


def to_peft(
    arrays: Mapping[str, Tensor], backbone: Backbone, lora: LoraConfig, base_model: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of `adapter_model.safetensors` and the content of `adapter_config.json`.

    `base_model` is the hub name or folder that the configuration will name. Layers are named in full, so exactly those with a
    pair get one. The model to load it into is `AutoModel`, but for CLIP `CLIPVisionModelWithProjection`.

    Raises:
        FedmsError: there is no pair.
    """
    scale = lora.alpha / lora.rank
    paths = _paths(backbone)
    pairs = {paths[key]: _factors(pair) for key, pair in sorted(Expert(arrays, scale).pairs().items())}
    if not pairs:
        raise FedmsError("this expert has no LoRA pair, so there is nothing that PEFT could load")
    tensors = {}
    for path, (A, B) in pairs.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = B
    raised = {path: A.shape[0] for path, (A, _) in pairs.items() if A.shape[0] != lora.rank}
    model = type(backbone.model)
    clip = backbone.family.projection is not None
    return tensors, {
        "peft_type": "LORA",
        # a task type would have PEFT pass `input_ids`, which CLIP's image tower does not take
        "task_type": None if clip else "FEATURE_EXTRACTION",
        "auto_mapping": {"base_model_class": model.__name__, "parent_library": model.__module__}
        if clip
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
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def from_peft(folder: str | Path, backbone: Backbone, lora: LoraConfig) -> Arrays:
    """The arrays of an expert of scale lora.alpha / lora.rank from a PEFT folder; with a head where one lies beside.

    Another scale in the folder is put into B; ranks stay as they are.

    Raises:
        FedmsError: the folder cannot be read, is no LoRA, or changes more than this backbone's pairs (`lora.targets`).
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    start = config.get("init_lora_weights", True)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or start not in PLAIN_STARTS:
        raise FedmsError(f"{folder / CONFIG}: only plain LoRA adapters can be read")
    keys = {path: key for key, path in _paths(backbone).items()}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _read_tensors(folder / WEIGHTS).items():
        match = re.fullmatch(r"(?P<path>.+)\.lora_(?P<matrix>[AB])\.weight", name.removeprefix(PREFIX))
        if match is None or match["path"] not in keys:
            raise FedmsError(
                f"{folder / WEIGHTS}: {name} is not a LoRA matrix of a layer that lora.targets names"
            )
        found.setdefault(match["path"], {})[match["matrix"]] = tensor.float()
    arrays: Arrays = {}
    for path, pair in found.items():
        block, target = keys[path]
        outputs, inputs = backbone.shape(target)
        shapes = {matrix: tuple(tensor.shape) for matrix, tensor in pair.items()}
        rank = pair["A"].shape[0] if "A" in pair else 0
        if rank == 0 or shapes != {"A": (rank, inputs), "B": (outputs, rank)}:
            raise FedmsError(f"{folder / WEIGHTS}: the pair of {path} is incomplete or misshapen: {shapes}")
        arrays[f"block.{block}.{target}.lora_A"] = pair["A"]
        try:
            scale = _scale(config, path, rank)
        except (TypeError, ValueError, OverflowError, re.error):
            raise FedmsError(
                f"{folder / CONFIG}: lora_alpha or alpha_pattern is not what an adapter's must be"
            ) from None
        arrays[f"block.{block}.{target}.lora_B"] = pair["B"] * (scale / (lora.alpha / lora.rank))
    if (folder / HEAD_WEIGHTS).exists():
        arrays |= {f"head.{name}": tensor for name, tensor in _read_tensors(folder / HEAD_WEIGHTS).items()}
    return arrays


def write_peft(
    folder: Path,
    arrays: Mapping[str, Tensor],
    backbone: Backbone,
    lora: LoraConfig,
    base_model: str,
    labels: list[str],
) -> None:
    """Write adapter and head into a folder, which is made."""
    tensors, config = to_peft(arrays, backbone, lora, base_model)
    head = {name.removeprefix("head."): array for name, array in arrays.items() if name.startswith("head.")}
    folder.mkdir(parents=True)
    save_plain(tensors, folder / WEIGHTS)
    save_plain(head, folder / HEAD_WEIGHTS)
    described = {
        "formula": HEAD_FORMULA,
        "pooling": backbone.pooling,
        "feature_size": backbone.feature_size,
        "labels": labels,
    }
    for name, content in ((CONFIG, config), (HEAD_CONFIG, described)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file as other libraries expect it."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(
        save(plain, metadata={"format": "pt"})
    )  # save_file would keep it from everyone but the owner


def _paths(backbone: Backbone) -> dict[tuple[int, str], str]:
    """The name within the pretrained model of each layer that can carry a pair."""
    names = {id(module): name for name, module in backbone.model.named_modules()}
    return {key: names[id(layer)] for key, layer in backbone.layers.items()}


def _factors(pair: Pair) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] with scale B A the pair's whole update."""
    if pair.residual is None:
        return pair.A, pair.B
    exact = pair.residual.double() + pair.scale * (pair.B.double() @ pair.A.double())
    U, S, V = torch.linalg.svd(exact / pair.scale, full_matrices=False)
    rank = max(1, int(S.gt(NEGLIGIBLE * S[0]).sum()))
    root = S[:rank].sqrt()
    return (root[:, None] * V[:rank]).float(), (U[:, :rank] * root).float()


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """lora_alpha / r of one layer; patterns are matched as PEFT does.

    Raises:
        TypeError, ValueError, OverflowError, re.error: what the configuration says of it is no scale.
    """
    patterns = dict(config.get("alpha_pattern") or {})
    alpha = next(
        (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)),
        config.get("lora_alpha", 8),
    )
    scale = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise ValueError(scale)
    return scale


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise FedmsError(f"{path}: not valid JSON") from None
    if not isinstance(config, dict):
        raise FedmsError(f"{path}: not an adapter's configuration")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise FedmsError(f"{path}: damaged: {error}") from None
    return tensors
