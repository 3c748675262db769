"""An adapter in the format of Hugging Face PEFT: what its files are called, and how it is read, without PEFT.

PEFT adds (lora_alpha / r) B A to a weight, as we do, so a pair is read as it is. PEFT has no head like ours:
beside an adapter that fedms wrote lie `head.safetensors` and `head.json`, which says how the head is applied.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedms.config.sections import LoraConfig
from fedms.core.errors import FedmsError
from fedms.model.arrays import Arrays
from fedms.model.backbone import Backbone

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLED_WEIGHTS = "adapter_model.bin"
HEAD_WEIGHTS, HEAD_CONFIG = "head.safetensors", "head.json"
PREFIX = "base_model.model."
"""How the names of an adapter's tensors begin."""
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways in which PEFT starts an adapter that leave the backbone's weights as they are."""


def from_peft(folder: str | Path, backbone: Backbone, lora: LoraConfig) -> Arrays:
    """The arrays of an expert of scale lora.alpha / lora.rank, and its head if one lies beside the adapter.

    An adapter of another scale gets a B that makes up for it. Ranks stay as they are.

    Raises:
        FedmsError: the folder cannot be read, is no LoRA, or changes other layers than `lora.targets`.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    if not (folder / WEIGHTS).exists() and (folder / PICKLED_WEIGHTS).exists():
        raise FedmsError(
            f"{folder / PICKLED_WEIGHTS}: is a pickle, which fedms never loads; save the adapter as {WEIGHTS}"
        )
    start = config.get("init_lora_weights", True)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or start not in PLAIN_STARTS:
        raise FedmsError(f"{folder / CONFIG}: only plain LoRA adapters can be read")
    keys = {path: key for key, path in layer_names(backbone).items()}
    found: dict[str, dict[str, Tensor]] = {}
    others: set[str] = set()
    for name, tensor in read_tensors(folder / WEIGHTS).items():
        match = re.fullmatch(r"(?P<path>.+)\.lora_(?P<matrix>[AB])\.weight", name.removeprefix(PREFIX))
        if match is None:
            raise FedmsError(f"{folder / WEIGHTS}: {name} is no LoRA matrix; only those can be read")
        if _within(match["path"], keys) is None:
            others.add(match["path"].rpartition(".")[2])
        found.setdefault(match["path"], {})[match["matrix"]] = tensor.float()
    if others:
        raise FedmsError(
            f"{folder / WEIGHTS}: has pairs on {', '.join(sorted(others))}, which lora.targets does not "
            "train; name all of the adapter's layers there"
        )
    arrays: Arrays = {}
    for path, pair in found.items():
        block, target = keys[_within(path, keys) or path]
        outputs, inputs = backbone.shape(target)
        shapes = {matrix: tuple(tensor.shape) for matrix, tensor in pair.items()}
        rank = pair["A"].shape[0] if "A" in pair else 0
        if rank == 0 or shapes != {"A": (rank, inputs), "B": (outputs, rank)}:
            raise FedmsError(f"{folder / WEIGHTS}: the pair of {path} is incomplete or misshapen: {shapes}")
        scale = _scale(folder, config, path, rank)
        arrays[f"block.{block}.{target}.lora_A"] = pair["A"]
        arrays[f"block.{block}.{target}.lora_B"] = pair["B"] * (scale / (lora.alpha / lora.rank))
    if (folder / HEAD_WEIGHTS).exists():
        arrays |= read_head(folder)
    return arrays


def _within(path: str, keys: Mapping[str, Any]) -> str | None:
    """The path within our model of a layer, which may be named from a task's model (`bert.encoder...`)."""
    while path not in keys and "." in path:
        path = path.partition(".")[2]
    return path if path in keys else None


def declared_base(folder: Path) -> tuple[str | None, str | None]:
    """The base model that an adapter names, and the digest of its weights where fedms wrote the adapter.

    Raises:
        FedmsError: the adapter's configuration cannot be read.
    """
    name = _read_config(folder / CONFIG).get("base_model_name_or_path")
    about = _read_config(folder / HEAD_CONFIG) if (folder / HEAD_CONFIG).exists() else {}
    weights = about.get("base_weights")
    return (name if isinstance(name, str) and name else None), (weights if isinstance(weights, str) else None)


def read_head(folder: Path) -> Arrays:
    """The head that fedms wrote into this folder. Raises FedmsError if it cannot be read."""
    return {f"head.{name}": tensor for name, tensor in read_tensors(folder / HEAD_WEIGHTS).items()}


def layer_names(backbone: Backbone) -> dict[tuple[int, str], str]:
    """The name within the pretrained model of each layer that can carry a pair."""
    names = {id(module): name for name, module in backbone.model.named_modules()}
    return {key: names[id(layer)] for key, layer in backbone.layers.items()}


def _scale(folder: Path, config: Mapping[str, Any], path: str, rank: int) -> float:
    """lora_alpha / r of one layer. Patterns are matched as PEFT matches them."""
    try:
        patterns = dict(config.get("alpha_pattern") or {})
        fitting = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path))
        alpha = float(next(fitting, config.get("lora_alpha", 8)))
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        if math.isfinite(scale):
            return scale
    except (TypeError, ValueError, OverflowError, re.error):
        pass
    raise FedmsError(f"{folder / CONFIG}: lora_alpha or alpha_pattern is not what an adapter's must be")


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FedmsError if it cannot be read."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise FedmsError(f"{path}: damaged: {error}") from None
    return tensors
