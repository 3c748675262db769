"""From samples to what the backbone eats: token ids or pixels, in batches without needless padding."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedms.config.sections import ModelConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.data.sources import Dataset
from fedms.model.backbone import Backbone, attention_mask
from fedms.model.checkpoints import first_line, locate

_tokenizing = threading.Lock()
"""A tokenizer holds the length at which it truncates, and threads and clients share it."""


class Inputs(Protocol):
    """Model inputs of a data set, made when they are asked for."""

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of these samples, [len(rows)]."""

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Inputs of these samples, padded to the longest among them, and the mask (None where nothing is padded)."""


class TextInputs:
    """Token ids; each text is tokenised once, when first used."""

    def __init__(self, texts: Sequence[str], tokenizer: Any, max_length: int) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._pad = int(tokenizer.pad_token_id or 0)
        self._ids: dict[int, np.ndarray] = {}

    def _of(self, rows: np.ndarray) -> list[np.ndarray]:
        new = [int(row) for row in rows if int(row) not in self._ids]
        if new:
            texts = [self._texts[row] for row in new]
            with _tokenizing:
                encoded = self._tokenizer(texts, truncation=True, max_length=self._max_length)
            for row, ids in zip(new, encoded["input_ids"], strict=True):
                self._ids[row] = np.asarray(ids, dtype=np.int32)
        return [self._ids[int(row)] for row in rows]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.array([len(ids) for ids in self._of(rows)], dtype=np.int64)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        ids = self._of(rows)
        lengths = torch.tensor([len(each) for each in ids])
        longest = int(lengths.max())
        padded = np.full((len(ids), longest), self._pad, dtype=np.int64)
        for line, each in zip(padded, ids, strict=True):
            line[: len(each)] = each
        return torch.from_numpy(padded), attention_mask(lengths, longest)


class ImageInputs:
    """Pixels, decoded and normalised each time; the prefix cache keeps what comes of them."""

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


def inputs_for(dataset: Dataset, backbone: Backbone, config: ModelConfig) -> Inputs:
    """The model inputs of a data set.

    Raises:
        FedmsError: text for an image model or the reverse, or no tokenizer or image processor beside the model.
        ConfigError: an image size that the model cannot cut into patches.
    """
    if dataset.kind != backbone.kind:
        raise FedmsError(f"model {config.name} reads {backbone.kind}, but the data are {dataset.kind}")
    if dataset.kind == "text":
        return _text_inputs(dataset.inputs, backbone, config)
    _check_image_size(backbone, config)
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            locate(config.name), trust_remote_code=False, backend="pil"
        )
        trial, _ = ImageInputs([Image.new("RGB", (64, 64))], processor, config.image_size).batch(
            np.zeros(1, dtype=np.int64)
        )
        backbone.embed(trial.to(backbone.device))
    except (
        Exception
    ) as error:  # whatever transformers says of a damaged file, and a size that the model does not take
        raise FedmsError(f"model {config.name}: no image processor: {first_line(error)}") from None
    return ImageInputs(dataset.inputs, processor, config.image_size)


def _text_inputs(texts: Sequence[str], backbone: Backbone, config: ModelConfig) -> TextInputs:
    tokenizer, model = _tokenizer(config.name, _place(config.name)), cast(Any, backbone.model)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise FedmsError(
            f"model {config.name}: its tokenizer has more words ({len(tokenizer):,}) than its weights know"
        )
    return TextInputs(texts, tokenizer, min(config.max_length, backbone.positions or config.max_length))


def _check_image_size(backbone: Backbone, config: ModelConfig) -> None:
    model: Any = backbone.model
    size, patch = config.image_size, model.config.patch_size  # a number, or [height, width]
    if size is not None and np.any(size % np.asarray(patch)):
        raise ConfigError(
            f"model.image_size: for model {config.name} it must be a multiple of its patches ({patch}), not {size}"
        )


def _place(name: str) -> str:
    """Where a model is: a relative path leads elsewhere when the process has changed its folder."""
    if name == "minilm":  # to locate it is to read it all
        return name
    place = Path(locate(name))
    return str(place.resolve()) if place.is_dir() else name


@lru_cache(maxsize=4)
def _tokenizer(name: str, place: str) -> Any:
    """The tokenizer of `model.name`, which is at `place`."""
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate(name), trust_remote_code=False, use_fast=True)
    except (
        Exception
    ) as error:  # whatever transformers or tokenizers say of a damaged file, the user gets one line
        raise FedmsError(f"model {name}: no tokenizer: {first_line(error)}") from None
    if len(tokenizer) <= len(
        tokenizer.all_special_tokens
    ):  # transformers 5 makes one without words where no vocabulary is found
        raise FedmsError(f"model {name}: no tokenizer: there is no vocabulary beside the model")
    return tokenizer


@torch.no_grad()
def class_name_embeddings(class_names: Sequence[str], backbone: Backbone, config: ModelConfig) -> Tensor:
    """The frozen features of the class names as words, [C, d]."""
    texts = _text_inputs([name.replace("_", " ").replace("-", " ") for name in class_names], backbone, config)
    backbone.attach({})
    features = []
    for row in range(len(class_names)):  # one by one: a handful, and independent of each other's padding
        ids, mask = texts.batch(np.array([row]))
        features.append(backbone.feature(ids.to(backbone.device), mask))
    return torch.cat(features).cpu()


def batches(lengths: np.ndarray, size: int, order: np.random.Generator | None = None) -> list[np.ndarray]:
    """Positions in batches of about one length each, so that little is padded.

    Without `order`: sorted by length. With it: a random order, sorted by length within windows of 16 batches, and the
    batches shuffled.
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
