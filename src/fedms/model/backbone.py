"""The frozen transformer as a list of blocks that can run from any block upward.

Hidden states are [batch, tokens, d]. With them go the lengths of the samples: a tensor [batch] on the CPU, or
None without padding. A packed batch (`model/packing.py`) is [1, tokens, d], and its `Packing` stands in place
of the lengths. The backbone alone makes of them what its model wants.

Embeddings and blocks may be in bfloat16. Hidden states and attached pairs have that type then. The modules
after the last block work on each token alone and stay in float32, so a feature is always float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from fedms.core.errors import ConfigError
from fedms.model.arrays import is_real, moved
from fedms.model.discovery import ALL_LINEAR, find_targets, linear_layers, without_transposed
from fedms.model.families import Family
from fedms.model.kernels import FrozenLinear, Kernel, fastest, has_onednn
from fedms.model.lora import LoraLinear, Pair
from fedms.model.packing import Packing, packed_attention
from fedms.model.reentry import Reentry

Lengths = Tensor | Packing | None
"""Tokens of each sample of a batch; None if nothing is padded"""
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
    """A frozen pretrained transformer.

    Attributes:
        depth: number of blocks L; block 0 is next to the input.
        width: size d of a hidden state.
        feature_size: size of the pooled feature.
        targets: names of the layers that can carry a LoRA pair, the same in every block.
        usual_targets: those that carry pairs by default; empty where they were not looked for.
        transposed: names of the layers whose weights the pretrained model keeps as [in, out].
        positions: number of tokens of the longest text that it can read; None for images.
        device, dtype: its device, and the type of its hidden states.
        kernel: computes the products of the blocks' frozen layers.
        words: the frozen matrix [V, d] from a last hidden state to next tokens, where it was loaded.
        checkpointing: whether values within a block are computed again in the backward pass.
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
        self.pooling = pooling if pooling != "auto" else _pooling(model, family)
        if self.pooling == "own" and not hasattr(model, family.pooler or "no pooler"):
            raise ConfigError("model.pooling: own needs a SigLIP with its head; allowed: mean, cls, last")
        self.transposed = without_transposed(model)
        blocks: Any = model.get_submodule(family.blocks)
        self.blocks: nn.ModuleList = blocks
        self.depth = len(self.blocks)
        self.width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.parameter_count = sum(p.numel() for p in model.parameters())
        name = checkpoint.name if checkpoint is not None else "in memory"
        self.usual_targets = family.targets or (() if targets else find_targets(self.blocks, name))
        self.targets = targets or self.usual_targets
        if self.targets == (ALL_LINEAR,):
            self.targets = tuple(linear_layers(self.blocks[0]))
        self.block_linear_weights: int = sum(
            layer.weight.numel() for layer in linear_layers(self.blocks[0]).values()
        ) + _active_weights(self.blocks[0], model.config)
        self._reentry = Reentry(model, self.blocks, family.kind) if family.found else None
        if self._reentry:
            self._reentry.check(*_samples(model, family.kind), name)
        self.frozen = [_frozen(self.blocks, name) for name in linear_layers(self.blocks)]
        self.kernel: Kernel = "torch"
        self.layers: dict[tuple[int, str], LoraLinear] = {}
        for number, block in enumerate(self.blocks):
            for target in self.targets:
                self.layers[number, target] = _insert(block, target)
        projection = model.get_submodule(family.projection) if family.projection else None
        self.feature_size = projection.out_features if isinstance(projection, nn.Linear) else self.width
        self.positions = _positions(model) if family.kind == "text" else None
        self.words: Tensor | None = None
        self.checkpointing = False
        weights = dict(model.named_parameters())
        self.device = next(iter(weights.values())).device
        self.dtype = torch.float32

    @property
    def kind(self) -> Literal["text", "image"]:
        return self.family.kind

    @property
    def packs(self) -> bool:
        """Whether it runs packed batches. On a GPU their many small calls of attention would cost more."""
        attention = getattr(self.model.config, "_attn_implementation", None)
        return self.family.packs and self.device.type == "cpu" and attention != "eager"

    @property
    def vocabulary(self) -> Tensor:
        """The frozen matrix of all words, [V, d]."""
        assert self.words is not None, "only `task: text` loads it"
        return self.words

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
        if self._reentry:
            self.model.to(dtype)
            for module in self._reentry.after:
                module.float()
        else:
            for path in (self.family.embeddings, *self.family.before, self.family.blocks):
                self.model.get_submodule(path).to(dtype)
        self.device, self.dtype = torch.device(device), dtype
        self.words = None if self.words is None else self.words.to(device)
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

    def embed(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Token ids [batch, tokens] or pixels [batch, 3, h, w] -> input of block 0."""
        if self._reentry:
            return self._reentry.embed(inputs if self.kind == "text" else inputs.to(self.dtype), lengths)
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

    def run(self, hidden: Tensor, lengths: Lengths, start: int = 0, stop: int | None = None) -> Tensor:
        """The input of block `start` -> the output of block `stop` - 1."""
        packed = isinstance(lengths, Packing)
        if self._reentry:
            assert not isinstance(lengths, Packing), "only families that pack are given a Packing"
            return self._reentry.run(hidden, lengths, start, stop, self._through)
        mask = lengths if isinstance(lengths, Packing) else _mask(lengths, hidden)
        with packed_attention(self.model.config) if packed else nullcontext():
            for number in range(self.depth)[start:stop]:
                hidden = self._through(number, hidden, mask)
        return hidden

    @torch.no_grad()
    def read_on(
        self,
        tokens: Tensor,
        start: int,
        caches: Sequence[Any],
        pairs: Sequence[Mapping[tuple[int, str], Pair]],
    ) -> list[Tensor]:
        """Last hidden states [t, d] of the next tokens [t] of a sequence, for the pairs of each expert.

        Blocks below `start` run once, with the first expert's pairs. `caches` are transformers' caches of
        keys and values, one an expert; the first one also serves the blocks below `start`.
        """
        assert self._reentry is not None, "families with causal models are found"
        found = self._reentry.read_on(tokens[None], start, caches, lambda at: self.attach(pairs[at]))
        return [self.end(hidden)[0] for hidden in found]

    def _through(self, number: int, hidden: Tensor, *others: Any, **keywords: Any) -> Any:
        """The output of one block; with `checkpointing`, what a gradient needs is computed again later."""
        block = self.blocks[number]
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(hidden, *others, **keywords)
        layers = {layer: layer.pair for (at, _), layer in self.layers.items() if at == number}
        if not (hidden.requires_grad or any(layers.values())):
            return block(hidden, *others, **keywords)

        def again(hidden: Tensor) -> Any:
            # by the time of the backward pass, other pairs may be attached
            attached = {layer: layer.pair for layer in layers}
            try:
                for layer, pair in layers.items():
                    layer.pair = pair
                return block(hidden, *others, **keywords)
            finally:
                for layer, pair in attached.items():
                    layer.pair = pair

        return checkpointed(again, hidden, use_reentrant=False, preserve_rng_state=False)

    def end(self, hidden: Tensor) -> Tensor:
        """The last block's output -> what the pretrained model gives for each token, in float32."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self._reentry:
            return self._reentry.end(hidden)
        for path in self.family.after:
            hidden = self.model.get_submodule(path)(hidden)
        return hidden

    def pool(self, hidden: Tensor, lengths: Lengths) -> Tensor:
        """The last block's output -> the feature of each sample, float32 [samples, feature_size]."""
        if isinstance(lengths, Packing):
            return torch.cat([self.pool(texts, None) for texts in lengths.rectangles(hidden[0], 0)])
        # what is declared to follow the blocks works on each token alone
        first = self.pooling == "cls" and not self._reentry
        token = self.end(hidden[:, 0] if first else hidden)
        if self.pooling == "cls":
            token = token if first else token[:, 0]
        elif self.pooling == "own":
            token = self.model.get_submodule(str(self.family.pooler))(token)
        elif self.pooling == "last":
            last = token.shape[1] - 1 if lengths is None else moved(lengths, token.device) - 1
            token = token[torch.arange(len(token), device=token.device), last]
        elif lengths is not None:
            real = moved(is_real(lengths, token.shape[1]), token.device).to(token.dtype)[:, :, None]
            token = token.mul(real).sum(1) / real.sum(1)
        else:
            token = token.mean(1)
        if self.family.projection:
            token = self.model.get_submodule(self.family.projection)(token)
        return token

    def feature(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        """Inputs -> feature, in one pass."""
        return self.pool(self.run(self.embed(inputs, lengths), lengths), lengths)


def ragged(lengths: Tensor, longest: int) -> Tensor | None:
    """The lengths [batch], or None if no sample is shorter than the longest, so that nothing is padded."""
    return None if int(lengths.min()) == longest else lengths


def _mask(lengths: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Additive mask [batch, 1, 1, tokens]; None without padding."""
    if lengths is None:
        return None
    padded = ~is_real(lengths, hidden.shape[1])
    mask = torch.zeros(padded.shape, device=lengths.device).masked_fill_(padded, MASKED)[:, None, None]
    return moved(mask, hidden.device).to(hidden.dtype)


def _pooling(model: nn.Module, family: Family) -> str:
    """How a model's tokens become one feature, unless somebody says otherwise."""
    if family.kind == "text":
        return "last" if family.causal else "mean"
    own = [name.split(".") for name, _ in model.named_parameters()]
    first = any(parts[-1] == "cls_token" and "head" not in parts for parts in own)  # a head pools by its own
    return "cls" if (family.blocks and not family.found) or first else "mean"


def _samples(model: nn.Module, kind: str) -> tuple[Tensor, Tensor | None]:
    """Inputs with which a model is checked when it is loaded: two texts, or one picture."""
    config: Any = model.config
    drawn = torch.Generator().manual_seed(0)
    if kind == "text":
        words = config.get_text_config().vocab_size
        return torch.randint(min(4, words - 1), words, (2, 6), generator=drawn), torch.tensor([6, 4])
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(1, getattr(config, "num_channels", 3), height, width, generator=drawn), None


def _active_weights(block: nn.Module, config: Any) -> int:
    """Weights of a mixture of experts that one token meets: those of its few experts."""
    experts = next(
        (
            number
            for key in ("num_local_experts", "num_experts", "n_routed_experts")
            if (number := getattr(config, key, None))
        ),
        0,
    )
    if not experts:
        return 0
    held = sum(each.numel() for each in block.parameters() if each.dim() == 3 and len(each) == experts)
    return int(held * config.num_experts_per_tok // experts)


def _positions(model: nn.Module) -> int | None:
    """The most tokens that the model has positions for; None if there is no limit.

    RoBERTa starts to count after the padding's position, so it has fewer positions than table rows.
    """
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            return int(table.num_embeddings) - (0 if table.padding_idx is None else table.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)


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
