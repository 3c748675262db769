"""Where samples come from: the embedded corpus, a file, a folder, or the Hugging Face hub.

Every source becomes the same `Dataset`. Plain files are read strictly (a short line is an error, not a gap),
nothing is cached beside them, and no code of a data set is ever run. The `datasets` library is imported only
where its formats need it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedms.config.data import DataConfig
from fedms.core import seeds
from fedms.core.errors import FedmsError
from fedms.data.clients import read_client, read_clients
from fedms.data.columns import about_labels, check_declared, classes, places, roles, same_value, values
from fedms.data.files import FORMATS, SHEETS, read_file
from fedms.data.folders import read_folder
from fedms.data.hub import read_hub
from fedms.data.images import Images
from fedms.data.passages import ONE_CLASS, passages
from fedms.data.splits import Source
from fedms.data.table import Table, brief
from fedms.data.text_tables import delimited


@dataclass(frozen=True)
class Dataset:
    """Samples with one class each, by the splits that the source has: train, validation, test.

    Only a source of one file a client has a validation split of its own.
    """

    kind: Literal["text", "image"]
    inputs: Sequence[Any]
    """[n] texts, passages, or images that are decoded when asked for (index -> `PIL.Image.Image` in RGB)."""
    labels: np.ndarray
    """int64 [n], indices into `class_names`."""
    class_names: tuple[str, ...]
    columns: dict[str, np.ndarray]
    """The other scalar columns, each an array of str [n]; empty where a value is missing."""
    is_test: np.ndarray | None
    """bool [n]; None when the source has no test split of its own. Of a source of one file a client, the test
    split of some clients."""
    notes: tuple[str, ...] = ()
    """Lines that the user should see: what was left out, and labels that were spelled in several ways."""
    is_validation: np.ndarray | None = None
    """As `is_test`, of validation samples."""
    clients: tuple[str, ...] = ()
    """The clients that a source of one file a client names, sorted."""
    owner: np.ndarray | None = None
    """int64 [n], indices into `clients`; None when the source does not say whose the samples are."""
    is_public: np.ndarray | None = None
    """bool [n]; samples of nobody, on which everybody's model is tested: see `with_public`."""

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


def load_client(config: DataConfig, name: str) -> Dataset:
    """Read the file or folder of one client, as `load` reads a folder of clients.

    The classes are those that occur, sorted; they need not be all classes of the federation.

    Raises:
        FedmsError: as `load`.
    """
    return load(config, 0, by_client=True, alone=name)


def load(
    config: DataConfig,
    seed: int,
    by_client: bool = False,
    alone: str | None = None,
    task: Literal["classification", "text"] = "classification",
) -> Dataset:
    """Read the source that the config names.

    A source is `assistant`, a file (CSV, TSV, JSONL, JSON, Parquet), a folder (files or folders named
    `train` and `test`, one sub-folder of images per class, a saved `datasets` folder, or a clone of a data
    set of the hub), or a name on the hub, `name:subset` where it has several. A validation split is joined
    to the training split: every client cuts its own. `limit` keeps that many samples of each split, in their
    order.

    Args:
        config: the section `data`.
        seed: the experiment's, for `limit`.
        by_client: read a folder in which each file or sub-folder is one client (`partition.rule: files`; see
            `fedms.data.clients`). A validation split stays one.
        alone: the source is the file or folder of this client.
        task: with `text` a sample is a `Passage`, and needs no label.

    Raises:
        FedmsError: no such source, it cannot be read, a column does not exist, a value is missing, or its
            classes cannot be learned.
    """
    source = _read(config, by_client, alone)
    splits = source.splits
    sizes = {split: sum(table.rows for table in tables) for split, tables in splits.items()}
    for split, size in sizes.items():
        if not size:
            where = f" in the {split} split" if len(splits) > 1 else ""
            raise FedmsError(f"{config.source}: holds no samples{where}")
    tables = [table for name in splits for table in splits[name]]
    if task == "text":
        image, text, label = None, None, config.label or ""
    else:
        image, text, label = roles(config, tables[0])

    found = values(tables, label, "label") if label else [ONE_CLASS] * sum(sizes.values())
    labels = same_value([*found, *config.classes])[: len(found)]
    learned = sum(size for split, size in sizes.items() if split != "test")
    names = () if by_client else tables[0].class_names.get(label, ())  # each client's file could order them
    declared = dict.fromkeys(name.strip() for name in names)
    inputs = _inputs(config, tables, task, image, text)
    if config.classes:
        check_declared(tables, labels, config.classes)
    class_names = config.classes or classes(
        config.source,
        set(labels[:learned]),
        set(labels[learned:]),
        declared,
        alone is not None or not label,
    )
    index = {name: i for i, name in enumerate(class_names)}

    split_of = np.repeat([*sizes], [*sizes.values()])
    kept = [_limited(size, config.limit, seed, split) for split, size in sizes.items()]
    rows = np.concatenate([*map(np.add, kept, np.cumsum([0, *sizes.values()]))])
    clients, owner = _owners(tables)
    return Dataset(
        kind="image" if image else "text",
        inputs=Images(_pick(inputs, rows)) if image else _pick(inputs, rows),
        labels=np.array([index[value] for value in _pick(labels, rows)], dtype=np.int64),
        class_names=class_names,
        columns={name: _column(tables, name, rows) for name in _others(tables, text, label)},
        is_test=split_of[rows] == "test" if "test" in sizes else None,
        notes=(*source.notes, *about_labels(config.source, found, labels)),
        is_validation=split_of[rows] == "validation" if "validation" in sizes else None,
        clients=tuple(map(str, clients)) if by_client else (),
        owner=owner[rows].astype(np.int64) if by_client else None,
    )


def _inputs(
    config: DataConfig, tables: Sequence[Table], task: str, image: str | None, text: str | None
) -> list[Any]:
    """Passages, texts, or where pictures are, over all tables."""
    if task == "text":
        return [*passages(tables, config)]
    return [*places(tables, image)] if image else [*values(tables, text or "", "text")]


def _owners(tables: Sequence[Table]) -> tuple[np.ndarray, np.ndarray]:
    """The names of the tables' clients, sorted, and which of them holds each row."""
    held = np.repeat([table.client for table in tables], [table.rows for table in tables])
    return np.unique(held, return_inverse=True)


def with_public(
    dataset: Dataset,
    source: str,
    config: DataConfig,
    task: Literal["classification", "text"] = "classification",
) -> Dataset:
    """The data set with the samples of a public file behind its own, in their order. They are nobody's.

    Raises:
        FedmsError: there is no such file, it cannot be read, a label in it is not a class of the data set, or
            it holds pictures and the data set texts, or the reverse.
    """
    if not Path(source).expanduser().is_file():
        raise FedmsError(f"evaluation.public: no such file: {source}")
    changes: dict[str, Any] = {"source": source, "limit": None}
    if dataset.class_names != (ONE_CLASS,):
        changes["classes"] = dataset.class_names
    public = load(config.model_copy(update=changes), 0, task=task)
    if public.kind != dataset.kind:
        raise FedmsError(
            f"evaluation.public: {source} holds a column of {public.kind}, the data are {dataset.kind}"
        )
    own, more = len(dataset.labels), len(public.labels)

    def longer(values: np.ndarray | None, fill: Any) -> np.ndarray | None:
        return None if values is None else np.concatenate([values, np.full(more, fill, values.dtype)])

    mine, theirs = dataset.inputs, public.inputs
    both = mine + theirs if isinstance(mine, Images) and isinstance(theirs, Images) else [*mine, *theirs]
    return replace(
        dataset,
        inputs=both,
        labels=np.concatenate([dataset.labels, public.labels]),
        columns={name: np.append(there, [""] * more) for name, there in dataset.columns.items()},
        is_test=longer(dataset.is_test, False),
        is_validation=longer(dataset.is_validation, False),
        owner=longer(dataset.owner, -1),
        is_public=np.arange(own + more) >= own,
        notes=(*dataset.notes, *public.notes),
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


def _read(config: DataConfig, by_client: bool, alone: str | None) -> Source:
    """The tables of a source by split."""
    source = config.source
    if by_client and alone is None and not Path(source).expanduser().is_dir():
        raise FedmsError(f"{source}: must be a folder of the clients' files with partition.rule `files`")
    if source == "assistant":
        folder = resources.files("fedms.data") / "corpus"
        files = sorted((f for f in folder.iterdir() if f.name.endswith(".csv")), key=lambda file: file.name)
        texts = {file.name.removesuffix(".csv"): file.read_text(encoding="utf-8") for file in files}
        return Source({"train": [_corpus(domain, text) for domain, text in texts.items()]})
    path = Path(source).expanduser()
    try:
        if alone is not None and path.exists():
            return read_client(path, config, alone)
        if path.is_file():
            return Source({"train": [read_file(path, config)]})
        if path.is_dir():
            return read_clients(path, config) if by_client else read_folder(path, config)
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
