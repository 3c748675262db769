"""Where samples come from: the embedded corpus, a file, a folder, or the Hugging Face hub.

Every source becomes the same `Dataset`. Plain files are read strictly (a short line is an error, not a gap),
nothing is cached beside them, and no code of a data set is ever run. The `datasets` library is imported only
where its formats need it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedms.config.sections import DataConfig
from fedms.core import seeds
from fedms.core.errors import FedmsError
from fedms.data.columns import about_labels, classes, places, roles, same_value, values
from fedms.data.files import FORMATS, SHEETS, read_file
from fedms.data.folders import read_folder
from fedms.data.hub import read_hub
from fedms.data.images import Images
from fedms.data.splits import Source
from fedms.data.table import Table, brief
from fedms.data.text_tables import delimited


@dataclass(frozen=True)
class Dataset:
    """Samples with one class each: those of the training split first, then those of the test split."""

    kind: Literal["text", "image"]
    inputs: Sequence[Any]
    """[n] texts, or images that are decoded when asked for (index -> `PIL.Image.Image` in RGB)."""
    labels: np.ndarray
    """int64 [n], indices into `class_names`."""
    class_names: tuple[str, ...]
    columns: dict[str, np.ndarray]
    """The other scalar columns, each an array of str [n]; empty where a value is missing."""
    is_test: np.ndarray | None
    """bool [n]; None when the source has no test split of its own."""
    notes: tuple[str, ...] = ()
    """Lines that the user should see: what was left out, and labels that were spelled in several ways."""

    def check(self) -> list[bytes]:
        """Read each sample once: better now than after an hour.

        Returns:
            A digest of each sample's input [n]; equal inputs have equal digests.

        Raises:
            FedmsError: a sample cannot be read.
        """
        if isinstance(self.inputs, Images):
            return self.inputs.check()
        return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in self.inputs]

    def glance(self) -> list[bytes]:
        """As `check`, but of pictures only what is known without reading them [n]."""
        return self.inputs.glance() if isinstance(self.inputs, Images) else self.check()


def load(config: DataConfig, seed: int, least: int = 2) -> Dataset:
    """Read the source that the config names, which has `least` classes or more.

    A source is `assistant`, a file (CSV, TSV, JSONL, JSON, Parquet), a folder (files or folders named
    `train` and `test`, one sub-folder of images per class, a saved `datasets` folder, or a clone of a data
    set of the hub), or a name on the hub, `name:subset` where it has several. A validation split is joined
    to the training split: every client cuts its own. `limit` keeps that many samples of each split, in their
    order.

    Raises:
        FedmsError: no such source, it cannot be read, a column does not exist, a value is missing, or its
            classes cannot be learned.
    """
    source = _read(config)
    splits = source.splits
    for split, tables in splits.items():
        if not sum(table.rows for table in tables):
            raise FedmsError(
                f"{config.source}: holds no samples" + (f" in the {split} split" if len(splits) > 1 else "")
            )
    tables = [table for name in splits for table in splits[name]]
    image, text, label = roles(config, tables[0])

    found = values(tables, label, "label")
    labels = same_value(found)
    sizes = {split: sum(table.rows for table in tables) for split, tables in splits.items()}
    train, test = labels[: sizes["train"]], labels[sizes["train"] :]
    declared = dict.fromkeys(name.strip() for name in tables[0].class_names.get(label, ()))
    inputs = places(tables, image) if image else values(tables, text or "", "text")
    class_names = classes(config.source, set(train), set(test), declared, config.classes, least)
    index = {name: i for i, name in enumerate(class_names)}

    kept = {split: _limited(size, config.limit, seed, split) for split, size in sizes.items()}
    rows = np.concatenate([kept["train"], sizes["train"] + kept["test"]]) if "test" in kept else kept["train"]
    return Dataset(
        kind="image" if image else "text",
        inputs=Images(_pick(inputs, rows)) if image else _pick(inputs, rows),
        labels=np.array([index[value] for value in _pick(labels, rows)], dtype=np.int64),
        class_names=class_names,
        columns={name: _column(tables, name, rows) for name in _others(tables, text, label)},
        is_test=np.arange(len(rows)) >= len(kept["train"]) if test else None,
        notes=(*source.notes, *about_labels(config.source, found, labels)),
    )


def _others(tables: Sequence[Table], text: str | None, label: str) -> list[str]:
    """The other scalar columns that all tables have."""
    return [
        name
        for name in tables[0].scalars
        if name not in (text, label) and all(name in table.scalars for table in tables)
    ]


def _column(tables: Sequence[Table], name: str, rows: np.ndarray) -> np.ndarray:
    there = same_value([value or "" for table in tables for value in table.scalars[name]])
    return np.array(_pick(there, rows), dtype=str)


def _limited(count: int, limit: int | None, seed: int, split: str) -> np.ndarray:
    return np.sort(seeds.numpy_generator(seed, "limit", split).permutation(count)[:limit])


def _pick(found: list[Any], rows: np.ndarray) -> list[Any]:
    return [found[row] for row in rows]


def _read(config: DataConfig) -> Source:
    """The tables of a source by split."""
    source = config.source
    if source == "assistant":
        folder = resources.files("fedms.data") / "corpus"
        files = sorted((f for f in folder.iterdir() if f.name.endswith(".csv")), key=lambda file: file.name)
        texts = {file.name.removesuffix(".csv"): file.read_text(encoding="utf-8") for file in files}
        return Source({"train": [_corpus(domain, text) for domain, text in texts.items()]})
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return Source({"train": [read_file(path, config)]})
        if path.is_dir():
            return read_folder(path, config)
    except OSError as error:
        reason = error.strerror or brief(error)
        raise FedmsError(f"{error.filename or source}: cannot be read: {reason}") from None
    if (
        source.startswith((".", "~"))
        or path.is_absolute()
        or path.suffix.lower() in (*FORMATS, *SHEETS)
        or source.count("/") > 1
    ):
        raise FedmsError(f"{source}: no such file or folder")
    return read_hub(source)


def _corpus(domain: str, text: str) -> Table:
    table = delimited(f"assistant: {domain}", io.StringIO(text, newline=""), ",")
    table.scalars["domain"] = [domain] * table.rows
    return table
