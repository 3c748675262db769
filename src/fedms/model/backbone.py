"""The frozen transformer as a list of blocks that can run from any block upward.

Hidden states are [batch, tokens, d]. A mask is None without padding, else additive [batch, 1, 1, tokens]. A
packed batch (`model/packing.py`) is [1, tokens, d], and its `Packing` stands in place of the mask.

Embeddings and blocks may be in bfloat16. Hidden states and attached pairs have that type then. The modules
after the last block work on each token alone and stay in float32, so a feature is always float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from fedms.core.errors import ConfigError
from fedms.model.families import Family
from fedms.model.kernels import FrozenLinear, Kernel, fastest, has_onednn
from fedms.model.lora import LoraLinear, Pair
from fedms.model.packing import Packing, packed_attention

MASKED = torch.finfo(torch.bfloat16).min
"""Value that a mask adds at padding. It is finite in both precisions; the lowest float32 is not."""


class Preprocessing(Protocol):
    """Where a backbone's inputs come from; `model/checkpoints.py` has the one of pretrained models."""

    @property
    def name(self) -> str:
        """`model.name` of the config."""

    @property
    def source(self) -> str:
        """The model's folder or its name on the hub."""

    @property
    def declared(self) -> Any:
        """The model's config.json, as transformers reads it."""

    @property
    def prompt(self) -> str:
        """What precedes every text."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of a text model."""

    @property
    def image_processor(self) -> Any:
        """The image processor of an image model."""


class Backbone(nn.Module):
    """A frozen pretrained encoder.

    Attributes:
        depth: number of blocks L; block 0 is next to the input.
        width: size d of a hidden state.
        feature_size: size of the pooled feature.
        targets: names of the layers that can carry a LoRA pair, the same in every block.
        positions: number of tokens of the longest text that it can read; None for images.
        device, dtype: its device, and the type of its hidden states.
        kernel: computes the products of the blocks' frozen layers.
        checkpoint: source of the tokenizer or image processor; None for a model that was built in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        targets: tuple[str, ...] = (),
        pooling: str = "auto",
        checkpoint: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        model.eval().requires_grad_(False)
        self.model = model
        self.family = family
        self.checkpoint = checkpoint
        self.pooling = pooling if pooling != "auto" else ("mean" if family.kind == "text" else "cls")
        blocks: Any = model.get_submodule(family.blocks)
        self.blocks: nn.ModuleList = blocks
        self.depth = len(self.blocks)
        self.width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.parameter_count = sum(p.numel() for p in model.parameters())
        self.targets = targets or family.targets
        self.block_linear_weights = sum(
            module.weight.numel() for module in self.blocks[0].modules() if isinstance(module, nn.Linear)
        )
        self.frozen = [_frozen(self.blocks, name) for name in _linear_layers(self.blocks)]
        self.kernel: Kernel = "torch"
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

    @property
    def packs(self) -> bool:
        """Whether it runs packed batches. On a GPU their many small calls of attention would cost more."""
        return self.family.packs and self.device.type == "cpu"

    @property
    def prompt(self) -> str:
        """What precedes every text, by the model's own word."""
        return self.checkpoint.prompt if self.checkpoint is not None else ""

    def shape(self, target: str) -> tuple[int, int]:
        """(out, in) of the layer that carries `target`'s pair."""
        base = self.layers[0, target].base
        return base.out_features, base.in_features

    def to_device(self, device: str, dtype: torch.dtype = torch.float32) -> Backbone:
        """Move the model to the device, and convert embeddings and blocks to this type."""
        self.model.to(device)
        for path in (self.family.embeddings, *self.family.before, self.family.blocks):
            self.model.get_submodule(path).to(dtype)
        self.device, self.dtype = torch.device(device), dtype
        self.use("torch")
        return self

    def use(self, kernel: Literal["auto"] | Kernel) -> Backbone:
        """Compute the frozen layers' products by this kernel, or by the one that is fastest in a measurement.

        Raises:
            ConfigError: oneDNN is asked for where it has no products for this backbone.
        """
        possible = self.device.type == "cpu" and self.dtype == torch.float32
        if kernel == "onednn" and not (possible and has_onednn()):
            raise ConfigError(
                "engine.kernels: onednn needs device: cpu, precision: float32 and a PyTorch with oneDNN; "
                "allowed: auto, torch"
            )
        if kernel == "auto":
            kernel = fastest(self.frozen) if possible and self.frozen else "torch"
        for layer in self.frozen:
            layer.use(kernel)
        self.kernel = kernel
        return self

    def attach(self, pairs: Mapping[tuple[int, str], Pair]) -> None:
        """Attach pairs to their layers, converted to `dtype`; a layer without a pair runs as pretrained."""
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
        return not self.family.resizes_positions and tuple(pixels.shape[-2:]) != (size, size)

    def run(
        self, hidden: Tensor, mask: Tensor | Packing | None, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """The input of block `start` -> the output of block `stop` - 1."""
        packed = isinstance(mask, Packing)
        mask = mask.to(hidden.dtype) if isinstance(mask, Tensor) else mask
        with packed_attention(self.model.config) if packed else nullcontext():
            for block in self.blocks[start:stop]:
                hidden = block(hidden, mask)
        return hidden

    def pool(self, hidden: Tensor, mask: Tensor | Packing | None) -> Tensor:
        """The last block's output -> the feature of each sample, float32 [samples, feature_size]."""
        if isinstance(mask, Packing):
            return torch.cat([self.pool(texts, None) for texts in mask.rectangles(hidden[0], 0)])
        token = hidden[:, 0] if self.pooling == "cls" else hidden
        token = self._after(token.to(torch.promote_types(token.dtype, torch.float32)))
        if self.pooling == "last":
            last = token.shape[1] - 1 if mask is None else (mask[:, 0, 0] == 0).sum(1) - 1
            token = token[torch.arange(len(token), device=token.device), last]
        elif self.pooling != "cls" and mask is not None:
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
    """Additive mask [batch, 1, 1, longest] for texts of these lengths; None without padding."""
    if int(lengths.min()) == longest:
        return None
    padded = torch.arange(longest, device=lengths.device)[None, :] >= lengths[:, None]
    return torch.zeros(padded.shape, device=lengths.device).masked_fill_(padded, MASKED)[:, None, None]


def _positions(embeddings: nn.Module) -> int:
    """RoBERTa starts to count after the padding's position, so it has fewer positions than table rows."""
    table: Any = embeddings.get_submodule("position_embeddings")
    return int(table.num_embeddings) - (0 if table.padding_idx is None else table.padding_idx + 1)


def _linear_layers(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_modules() if isinstance(each, nn.Linear)]


def _frozen(blocks: nn.Module, name: str) -> FrozenLinear:
    """Replace this linear layer by the same one that is never trained; return the new layer."""
    parent, _, last = name.rpartition(".")
    layer = FrozenLinear.of(cast(nn.Linear, blocks.get_submodule(name)))
    setattr(blocks.get_submodule(parent), last, layer)
    return layer


def _insert(block: nn.Module, target: str) -> LoraLinear:
    """Replace the block's linear layer `target` by one that can carry a pair; return the new layer.

    `target` is the dotted ending of exactly one layer's name.
    """
    linear = {
        name: m
        for name, m in block.named_modules()
        if isinstance(m, nn.Linear) and not name.endswith(".base")
    }
    fitting = [name for name in linear if name == target] or [
        name for name in linear if f".{name}".endswith(f".{target}")
    ]
    if len(fitting) != 1:
        what = "is not a linear layer of a block"
        if fitting:
            what = f"fits more than one layer ({', '.join(fitting)})"
        raise ConfigError(f"lora.targets: {target!r} {what}; allowed: {', '.join(linear)}")
    parent, _, name = fitting[0].rpartition(".")
    layer = LoraLinear(linear[fitting[0]])
    setattr(block.get_submodule(parent), name, layer)
    return layer
