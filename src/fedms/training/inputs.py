"""From samples to model inputs: token ids or pixels, in batches with little padding."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fedms.config.sections import ModelConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.data.sources import Dataset
from fedms.model.backbone import Backbone, Preprocessing, ragged
from fedms.model.checkpoints import first_line
from fedms.model.text_tower import tower_embeddings

_tokenizing = threading.Lock()
"""A tokenizer holds the length at which it truncates, and threads and clients share it."""


class Inputs(Protocol):
    """Model inputs of a data set, made on request."""

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Number of tokens of each sample, [len(rows)]."""

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Inputs of these samples, padded to the longest, and their lengths (None without padding)."""


class TextInputs:
    """Token ids; each text is tokenised once, at its first use."""

    def __init__(
        self, texts: Sequence[str], tokenizer: Any, max_length: int, before: str = "", after: str = ""
    ) -> None:
        """`before` and `after` are read around every text."""
        self._texts = texts
        self._before, self._after = before, after
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._pad = int(tokenizer.pad_token_id or 0)
        self._ids: dict[int, np.ndarray] = {}

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def max_length(self) -> int:
        return self._max_length

    def encode(self, texts: Sequence[str], **options: Any) -> Any:
        """Token ids of each text."""
        with _tokenizing:
            return self._tokenizer(texts, **options)["input_ids"]

    def _of(self, rows: np.ndarray) -> list[np.ndarray]:
        new = [int(row) for row in rows if int(row) not in self._ids]
        if new:
            texts = [self._before + self._texts[row] + self._after for row in new]
            cut = {} if self._after else {"truncation": True, "max_length": self._max_length}
            for row, ids in zip(new, self.encode(texts, **cut), strict=True):
                fitting = ids if len(ids) <= self._max_length else self._cut(self._texts[row])
                self._ids[row] = np.asarray(fitting, dtype=np.int32)
        return [self._ids[int(row)] for row in rows]

    def _cut(self, text: str) -> list[int]:
        """Token ids with as much of a text as leaves room for what follows it."""
        least, most = 0, len(text) - 1
        while least < most:
            middle = (least + most + 1) // 2
            if len(self.encode([self._before + text[:middle] + self._after])[0]) <= self._max_length:
                least = middle
            else:
                most = middle - 1
        whole = [self._before + text[:least] + self._after]
        ids: list[int] = self.encode(whole, truncation=True, max_length=self._max_length)[0]
        return ids

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.array([len(ids) for ids in self._of(rows)], dtype=np.int64)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        ids = self._of(rows)
        lengths = torch.tensor([len(each) for each in ids])
        longest = int(lengths.max())
        padded = np.full((len(ids), longest), self._pad, dtype=np.int64)
        for line, each in zip(padded, ids, strict=True):
            line[: len(each)] = each
        return torch.from_numpy(padded), ragged(lengths, longest)


class ImageInputs:
    """Pixels, decoded and normalised at every call; the prefix cache keeps the hidden states instead."""

    def __init__(self, images: Sequence[Any], processor: Any, size: int | None) -> None:
        self._images = images
        self._processor = processor
        self._options = {"size": {"height": size, "width": size}, "do_center_crop": False} if size else {}

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), dtype=np.int64)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        images = [self._images[int(row)] for row in rows]
        pixels: Tensor = self._processor(images, return_tensors="pt", **self._options)["pixel_values"]
        return pixels, None


def inputs_for(
    dataset: Dataset, backbone: Backbone, config: ModelConfig, around: tuple[str, str] = ("", "")
) -> Inputs:
    """The model inputs of a data set; texts are read with what stands `around` them (`data.template`).

    Raises:
        FedmsError: text for an image model or the reverse, or the model has no tokenizer or image processor.
        ConfigError: an image size that the model cannot cut into patches.
    """
    if dataset.kind != backbone.kind:
        raise FedmsError(f"model {config.name} reads {backbone.kind}, but the data are {dataset.kind}")
    if dataset.kind == "text":
        return text_inputs(dataset.inputs, backbone, config, around)
    if any(around):
        raise ConfigError("data.template: needs texts, and the data are pictures; allowed: null")
    _check_image_size(backbone, config)
    processor = _preprocessing(backbone, config).image_processor
    try:
        trial = ImageInputs([Image.new("RGB", (64, 64))], processor, config.image_size)
        pixels, _ = trial.batch(np.zeros(1, dtype=np.int64))
        backbone.run(backbone.embed(pixels.to(backbone.device)), None, 0, 1)
    except Exception as error:  # transformers raises many types for a damaged file, torch for a wrong size
        raise FedmsError(f"model {config.name}: no image processor: {first_line(error)}") from None
    return ImageInputs(dataset.inputs, processor, config.image_size)


def _preprocessing(backbone: Backbone, config: ModelConfig) -> Preprocessing:
    if backbone.checkpoint is None:
        raise FedmsError(f"model {config.name}: no tokenizer or image processor: it was built in memory")
    return backbone.checkpoint


def text_inputs(
    texts: Sequence[str], backbone: Backbone, config: ModelConfig, around: tuple[str, str] = ("", "")
) -> TextInputs:
    """The model inputs of texts; FedmsError where the model has no fitting tokenizer."""
    tokenizer, model = _preprocessing(backbone, config).tokenizer, cast(Any, backbone.model)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise FedmsError(
            f"model {config.name}: its tokenizer has more words ({len(tokenizer):,}) than its weights know"
        )
    longest = min(config.max_length, backbone.positions or config.max_length)
    return TextInputs(texts, tokenizer, longest, backbone.prompt + around[0], around[1])


def _check_image_size(backbone: Backbone, config: ModelConfig) -> None:
    model: Any = backbone.model
    size = config.image_size
    patch = getattr(model.config, "patch_size", 1)  # a number, or [height, width]
    if size is not None and np.any(size % np.asarray(patch)):
        raise ConfigError(
            f"model.image_size: for model {config.name} it must be a multiple of its patches ({patch}), "
            f"not {size}"
        )


@torch.no_grad()
def class_name_embeddings(
    class_names: Sequence[str], backbone: Backbone, config: ModelConfig, prompts: Sequence[str] = ()
) -> Tensor:
    """The frozen features of the class names, read as words in each of the templates `prompts`, [C, d].

    A model of pictures embeds them by its text tower.
    """
    image = backbone.kind == "image"
    templates = prompts or (["a photo of a {class}."] if image else ["{class}"])
    words = [name.replace("_", " ").replace("-", " ") for name in class_names]
    found = []
    for template in templates:
        texts = [template.replace("{class}", name) for name in words]
        found.append(tower_embeddings(texts, backbone) if image else _features(texts, backbone, config))
    if len(found) == 1:
        return found[0]
    return torch.stack([F.normalize(each, dim=1) for each in found]).mean(0)


def _features(words: Sequence[str], backbone: Backbone, config: ModelConfig) -> Tensor:
    """The frozen features of texts, [n, d]."""
    texts = text_inputs(words, backbone, config)
    backbone.attach({})
    features = []
    for row in range(len(words)):  # one by one, so that none depends on another's padding
        ids, lengths = texts.batch(np.array([row]))
        features.append(backbone.feature(ids.to(backbone.device), lengths))
    return torch.cat(features).cpu()


def batches(lengths: np.ndarray, size: int, order: np.random.Generator | None = None) -> list[np.ndarray]:
    """Positions in batches of similar lengths, so that there is little padding.

    Without `order`, positions are sorted by length. With it, their order is random, they are sorted by length
    within windows of 16 batches, and the batches are shuffled.
    """
    if order is None:
        positions = np.argsort(lengths, kind="stable")
        return [positions[at : at + size] for at in range(0, len(positions), size)]
    positions = order.permutation(len(lengths))
    window = 16 * size
    made = []
    for at in range(0, len(positions), window):
        part = positions[at : at + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        made += [part[start : start + size] for start in range(0, len(part), size)]
    return [made[index] for index in order.permutation(len(made))]
