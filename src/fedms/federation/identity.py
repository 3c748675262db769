"""What stands behind a run's names: fingerprints of its data and its model.

A config only names a file and a model. A run keeps these fingerprints, so that nobody goes on with other
rows, other labels or other weights behind the same name, and so that one path typed in two ways stays one
data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from fedms.config import Config
from fedms.core.formatting import excerpt
from fedms.data.sources import Dataset
from fedms.model.backbone import Backbone

IGNORED_DECLARATIONS = (
    "_name_or_path",
    "transformers_version",
    "_attn_implementation_autoset",
    "dtype",
    "torch_dtype",
)
"""Keys of a model's config.json that say nothing of what it computes."""


@dataclass(frozen=True)
class DataIdentity:
    """A data set as a run reads it. Texts are SHA-256 digests, but for counts and class names."""

    samples: int
    classes: tuple[str, ...]
    content: str
    """Of all samples with their labels, in whatever order."""
    order: str
    """Of the same, in their order."""
    split: str
    """Which samples are the source's test split; its validation split and public samples, if there are such.
    """
    column: str
    """The values of `partition.column`, or each sample's client where the source names it; of nothing where
    neither divides the samples."""

    @classmethod
    def of(cls, dataset: Dataset, digests: Sequence[bytes], column: str | None) -> Self:
        """The identity of a data set with these digests of its inputs."""
        names = dataset.class_names
        rows = [
            hashlib.sha256(digest + names[label].encode()).digest()
            for digest, label in zip(digests, dataset.labels, strict=True)
        ]
        test = np.zeros(len(rows), dtype=bool) if dataset.is_test is None else dataset.is_test
        further = dataset.is_validation, dataset.is_public
        values = dataset.columns.get(column or "", np.empty(0, dtype=str))
        if dataset.owner is not None:
            values = np.array([*dataset.clients, ""])[dataset.owner]
        return cls(
            samples=len(rows),
            classes=names,
            content=_digest(sorted(rows)),
            order=_digest(rows),
            split=_digest(mask.tobytes() for mask in (test, *further) if mask is not None),
            column=_digest(str(value).encode() for value in values),
        )

    @classmethod
    def of_dict(cls, values: Any) -> Self:
        """The identity of these values of JSON; KeyError or TypeError where they are none."""
        kept = {each.name: values[each.name] for each in fields(cls)}
        return cls(**{**kept, "classes": tuple(kept["classes"])})

    @property
    def fingerprint(self) -> str:
        """One digest of all of it."""
        return _digest([_canonical(asdict(self))])

    def change(self, now: DataIdentity) -> str | None:
        """What is different now, in words; None where nothing is."""
        if self.samples != now.samples:
            return f"it holds {now.samples:,} samples, not {self.samples:,}"
        if self.classes != now.classes:
            gone = [name for name in self.classes if name not in now.classes]
            new = [name for name in now.classes if name not in self.classes]
            if gone and new:
                return f"class {excerpt(repr(gone[0]))} is gone, and {excerpt(repr(new[0]))} is new"
            return "its classes come in another order"
        if self.content != now.content:
            return "samples or their labels are different"
        if self.order != now.order:
            return "its samples come in another order"
        if self.split != now.split:
            return "other samples are its test or validation split, or public"
        return "its samples belong to other clients" if self.column != now.column else None


@dataclass(frozen=True)
class ModelIdentity:
    """A pretrained model as a run loads it, as SHA-256 digests."""

    weights: str
    declaration: str
    """Its config.json, as far as it says what the model computes, and its pooling and prompt."""
    preprocessing: str
    """Its tokenizer, or its image processor."""

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """The identity of a loaded model."""
        checkpoint = backbone.checkpoint
        assert checkpoint is not None, "a pretrained model has one"
        if backbone.kind == "text":
            preprocessing = json.loads(checkpoint.tokenizer.backend_tokenizer.to_str())
            for key in ("truncation", "padding"):  # set by whoever used the tokenizer last
                preprocessing.pop(key, None)
        else:
            preprocessing = checkpoint.image_processor.to_dict()
        declared = {
            key: value
            for key, value in checkpoint.declared.to_dict().items()
            if key not in IGNORED_DECLARATIONS
        }
        declared |= {"pooling": backbone.pooling, "prompt": backbone.prompt}
        return cls(
            weights=_digest(_weights(backbone)),
            declaration=_digest([_canonical(declared)]),
            preprocessing=_digest([_canonical(preprocessing)]),
        )

    def change(self, now: ModelIdentity) -> str | None:
        """What is different now, in words; None where nothing is."""
        if self.weights != now.weights:
            return "its weights are different"
        if self.declaration != now.declaration:
            return "its config.json is different"
        return (
            "its tokenizer or image processor is different"
            if self.preprocessing != now.preprocessing
            else None
        )


@dataclass(frozen=True)
class Identity:
    """What a run was made from."""

    data: DataIdentity
    model: ModelIdentity

    def to_dict(self) -> dict[str, Any]:
        """As values of JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: Any) -> Self:
        """The identity that `to_dict` wrote.

        Raises:
            KeyError, TypeError: these values are none.
        """
        model = {each.name: values["model"][each.name] for each in fields(ModelIdentity)}
        return cls(DataIdentity.of_dict(values["data"]), ModelIdentity(**model))

    def change(self, now: Identity, config: Config) -> str | None:
        """What is different now, in one line that names it; None where nothing is."""
        if change := self.data.change(now.data):
            return f"data {excerpt(config.data.source)} changed since then: {change}"
        return self.model_change(now.model, config)

    def model_change(self, now: ModelIdentity, config: Config) -> str | None:
        """As `change`, of the model alone."""
        change = self.model.change(now)
        return None if change is None else f"model {excerpt(config.model.name)} changed since then: {change}"


def _weights(backbone: Backbone) -> Iterable[bytes]:
    """All weights by name, as float32."""
    for name, array in sorted(_plain_weights(backbone).items()):
        yield f"{name} {tuple(array.shape)}".encode()
        yield array.detach().float().cpu().contiguous().numpy().tobytes()


def _plain_weights(backbone: Backbone) -> Mapping[str, Any]:
    """By the names of the pretrained model: a layer with a place for LoRA is the layer it stands for."""
    return {name.replace(".base.", "."): array for name, array in backbone.model.state_dict().items()}


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _digest(parts: Iterable[bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()
