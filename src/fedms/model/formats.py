"""Folders that hold a model in a form that fedms does not read: what each is, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt

ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
GGUF = ".gguf"


def check_format(name: str, source: str) -> None:
    """Raise if `model.name` is an adapter's folder, or has no weights but pickles or GGUF; a hub name passes.

    Raises:
        FedmsError: one line that says what is there and what to do.
    """
    place = Path(source)
    if place.is_file() and place.suffix.lower() in (GGUF, ".safetensors", *PICKLES):
        raise FedmsError(f"model {name}: is a file; model.name is a folder with config.json and safetensors")
    if not place.is_dir():
        return
    files = sorted(path.name for path in place.iterdir() if path.is_file())
    if ADAPTER in files:
        raise adapter_refusal(name, _declared(place / ADAPTER))
    if INDEX in files or any(file.endswith(".safetensors") for file in files):
        return
    for file in files:
        if file.lower().endswith(GGUF):
            advice = "which is for llama.cpp; name the model that it was made from"
            raise FedmsError(
                f"model {name}: no usable safetensors weights: there is {excerpt(file)}, {advice}"
            )
    for file in files:
        if file.lower().endswith(PICKLES):
            advice = (
                "a pickle, which could run code; load it with transformers where you trust it, and save it"
            )
            raise FedmsError(
                f"model {name}: no usable safetensors weights: there is {excerpt(file)}, {advice} with "
                "save_pretrained, which writes safetensors"
            )


def adapter_refusal(name: str, declared: Any) -> FedmsError:
    """The error for an adapter in place of a model; `declared` is what its adapter_config.json says."""
    base = declared.get("base_model_name_or_path") if isinstance(declared, dict) else None
    whose = f", {excerpt(base)}," if isinstance(base, str) and base else ""
    return FedmsError(
        f"model {name}: holds {ADAPTER}, so it is an adapter and no whole model; "
        f"name its base model{whose} in model.name, and this folder in model.adapter"
    )


def _declared(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
