"""Where samples come from: the embedded corpus, a file, a folder, or the Hugging Face hub.

Every source becomes the same `Dataset`. Plain files are read strictly (a short line is an error, not a gap), nothing is cached
beside them, and no code of a data set is ever run. The `datasets` library is imported only where its formats need it.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from fedms.config.sections import DataConfig
from fedms.core import seeds
from fedms.core.errors import FedmsError
from fedms.data.images import SUFFIXES, Images, Opener, Place

TEXT_NAMES = ("text", "sentence", "utterance", "content", "query")
LABEL_NAMES = ("label", "category", "intent", "class", "target", "fine_label", "label_text")
_SPLITS = {
    "train": "train",
    "validation": "train",
    "valid": "train",
    "val": "train",
    "dev": "train",
    "test": "test",
}
_HUB_FORMATS = ("arrow", "cache", "csv", "imagefolder", "json", "parquet", "text")


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

    def check(self) -> None:
        """FedmsError where a sample cannot be read: better now than after an hour."""
        if isinstance(self.inputs, Images):
            self.inputs.check()


def load(config: DataConfig, seed: int) -> Dataset:
    """Read the source that the config names.

    A source is `assistant`, a file (CSV, TSV, JSONL, JSON, Parquet), a folder (files named `train` and `test`, one sub-folder of
    images per class, or a saved `datasets` folder), or a name on the hub, `name:subset` where it has several. A validation split is
    joined to the training split: every client cuts its own. `limit` keeps that many samples of each split, in their order.

    Raises:
        FedmsError: no such source, it cannot be read, a column is not there, a value is missing, or its classes cannot be learned.
    """
    splits = _read(config.source)
    for split, tables in splits.items():
        if not sum(table.rows for table in tables):
            raise FedmsError(
                f"{config.source}: holds no samples" + (f" in the {split} split" if len(splits) > 1 else "")
            )
    tables = [table for name in splits for table in splits[name]]
    image, text, label = _roles(config, tables[0])

    labels = _values(tables, label, "label")
    sizes = {split: sum(table.rows for table in tables) for split, tables in splits.items()}
    train, test = labels[: sizes["train"]], labels[sizes["train"] :]
    class_names = _classes(config.source, set(train), set(test), tables[0].class_names.get(label, ()))
    index = {name: i for i, name in enumerate(class_names)}

    kept = {split: _limited(size, config.limit, seed, split) for split, size in sizes.items()}
    rows = np.concatenate([kept["train"], sizes["train"] + kept["test"]]) if "test" in kept else kept["train"]
    others = [
        name
        for name in tables[0].scalars
        if name not in (text, label) and all(name in table.scalars for table in tables)
    ]
    return Dataset(
        kind="image" if image else "text",
        inputs=Images(_pick(_places(tables, image), rows))
        if image
        else _pick(_values(tables, text or "", "text"), rows),
        labels=np.array([index[value] for value in _pick(labels, rows)], dtype=np.int64),
        class_names=class_names,
        columns={
            name: np.array(_pick([v or "" for table in tables for v in table.scalars[name]], rows), dtype=str)
            for name in others
        },
        is_test=np.arange(len(rows)) >= len(kept["train"]) if test else None,
    )


# --- one table of a source ----------------------------------------------------------------------------------


@dataclass
class _Table:
    """Columns of one file, as text; classes that a column declares; and what reads the image of a row."""

    where: str
    rows: int
    scalars: dict[str, list[str | None]] = field(default_factory=dict)
    images: dict[str, Sequence[Opener]] = field(default_factory=dict)
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> str:
        return ", ".join([*self.scalars, *self.images]) or "none"


def _roles(config: DataConfig, table: _Table) -> tuple[str | None, str | None, str]:
    """The columns of image, text (one of the two is None) and label."""

    def find(key: str, names: Sequence[str], there: Iterable[str]) -> str:
        lower = {name.lower(): name for name in reversed(list(there))}
        found = next((lower[name] for name in names if name in lower), None)
        if found is None:
            raise FedmsError(
                f"{config.source}: no column found for data.{key}, name it there; columns: {table.names}"
            )
        return found

    if config.text and config.image:
        raise FedmsError(
            f"{config.source}: data.text and data.image are both given, but a sample is one of the two"
        )
    image, text = config.image, config.text
    if not image and not text and len(table.images) > 1:
        raise FedmsError(
            f"{config.source}: several columns hold images, name one in data.image; columns: {table.names}"
        )
    if not image and not text and table.images:
        image = next(iter(table.images))
    if not image and not text:
        text = find("text or data.image", TEXT_NAMES, table.scalars)
    label = config.label or find("label", LABEL_NAMES, (name for name in table.scalars if name != text))
    return image, text, label


def _values(tables: Sequence[_Table], name: str, what: str) -> list[str]:
    """A column over all tables; no value may be missing."""
    values: list[str] = []
    for table in tables:
        if name not in table.scalars:
            raise FedmsError(f"{table.where}: no column {name!r} for the {what}; columns: {table.names}")
        for row, value in enumerate(table.scalars[name], 1):
            if value is None or not value.strip():
                raise FedmsError(f"{table.where}: row {row} has no {what} (column {name!r})")
            values.append(value)
    return values


def _places(tables: Sequence[_Table], name: str) -> list[Place]:
    for table in tables:
        if name not in table.images:
            raise FedmsError(f"{table.where}: no column {name!r} with images; columns: {table.names}")
    return [(opener, row, table.where) for table in tables for row, opener in enumerate(table.images[name])]


def _classes(source: str, train: set[str], test: set[str], declared: Sequence[str]) -> tuple[str, ...]:
    """The classes that training samples have: in their declared order, the rest sorted."""
    if test - train:
        raise FedmsError(
            f"{source}: class {min(test - train)!r} stands in the test split, but no training sample has it"
        )
    names = (*(name for name in declared if name in train), *sorted(train.difference(declared)))
    if len(names) < 2:
        raise FedmsError(
            f"{source}: every sample is of the class {names[0]!r}; at least 2 classes are needed"
        )
    return names


def _limited(count: int, limit: int | None, seed: int, split: str) -> np.ndarray:
    return np.sort(seeds.numpy_generator(seed, "limit", split).permutation(count)[:limit])


def _pick(values: list[Any], rows: np.ndarray) -> list[Any]:
    return [values[row] for row in rows]


# --- reading ------------------------------------------------------------------------------------------------


def _read(source: str) -> dict[str, list[_Table]]:
    """The tables of each split (`train` always, `test` where there is one)."""
    if source == "assistant":
        folder = resources.files("fedms.data") / "corpus"
        files = sorted(
            (file for file in folder.iterdir() if file.name.endswith(".csv")), key=lambda file: file.name
        )
        return {
            "train": [
                _corpus(file.name.removesuffix(".csv"), file.read_text(encoding="utf-8")) for file in files
            ]
        }
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return {"train": [_read_file(path)]}
        if path.is_dir():
            return _read_folder(path)
    except OSError as error:
        raise FedmsError(
            f"{error.filename or source}: cannot be read: {error.strerror or _brief(error)}"
        ) from None
    if (
        source.startswith((".", "~"))
        or path.is_absolute()
        or path.suffix.lower() in _FORMATS
        or source.count("/") > 1
    ):
        raise FedmsError(f"{source}: no such file or folder")
    return _read_hub(source)


def _corpus(domain: str, text: str) -> _Table:
    table = _delimited(f"assistant: {domain}", io.StringIO(text, newline=""), ",")
    table.scalars["domain"] = [domain] * table.rows
    return table


def _read_file(path: Path) -> _Table:
    read = _FORMATS.get(path.suffix.lower())
    if read is None:
        raise FedmsError(f"{path}: cannot read this kind of file; known: {', '.join(_FORMATS)}")
    try:
        return read(path)
    except UnicodeDecodeError as error:
        raise FedmsError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None


def _read_csv(path: Path, delimiter: str) -> _Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _delimited(str(path), file, delimiter)


def _delimited(where: str, file: Iterable[str], delimiter: str) -> _Table:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        header = next(reader, [])
        for row in filter(None, reader):
            if len(row) != len(header):
                raise FedmsError(
                    f"{where}: line {reader.line_num} has {len(row)} values, the header names {len(header)} columns"
                )
            rows.append(row)
    except csv.Error as error:
        raise FedmsError(f"{where}: line {reader.line_num} cannot be read: {_brief(error)}") from None
    if len(set(header)) != len(header):
        raise FedmsError(f"{where}: the header names a column twice: {', '.join(header)}")
    return _Table(where, len(rows), {name: [row[i] for row in rows] for i, name in enumerate(header)})


def _read_json(path: Path) -> _Table:
    """One array of objects, or one object a line."""
    text = path.read_text(encoding="utf-8-sig")
    lines = (
        [(1, text)]
        if text.lstrip().startswith("[")
        else [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    )
    rows: list[Any] = []
    for number, line in lines:
        try:
            value = json.loads(line)
            if "\\ud" in line.lower():
                json.dumps(value, ensure_ascii=False).encode()  # half a character is no text
        except (ValueError, RecursionError) as error:
            place = number + getattr(error, "lineno", 1) - 1
            raise FedmsError(
                f"{path}: line {place} is not valid JSON: {_brief(getattr(error, 'msg', error))}"
            ) from None
        rows += value if isinstance(value, list) else [value]
    if odd := next((i for i, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
        raise FedmsError(f"{path}: row {odd} is not an object with a value for each column")
    table = _Table(str(path), len(rows))
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        if not any(isinstance(value, list | dict) for value in values):
            table.scalars[name] = [_scalar(value) for value in values]
    return table


def _read_parquet(path: Path) -> _Table:
    import datasets
    from pyarrow import parquet  # type: ignore[import-untyped]

    try:
        return _from_datasets(str(path), datasets.Dataset(parquet.read_table(path)))
    except FedmsError:
        raise
    except Exception as error:  # Arrow's, and those of `datasets` for what it has noted in the file
        raise FedmsError(f"{path}: not a readable Parquet file: {_brief(error)}") from None


_FORMATS: dict[str, Callable[[Path], _Table]] = {
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _read_folder(folder: Path) -> dict[str, list[_Table]]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        import datasets

        return _from_hub(str(folder), lambda: datasets.load_from_disk(str(folder)))
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
    files: dict[str, list[Path]] = {}
    for path in entries:
        # "train.csv", or one of several as the hub writes them: "train-00000-of-00002.parquet"
        split = path.stem.split("-")[0].lower()
        if path.is_file() and path.suffix.lower() in _FORMATS and split in _SPLITS:
            files.setdefault(split, []).append(path)
    for split, paths in files.items():
        if len({path.suffix.lower() for path in paths}) > 1:
            raise FedmsError(
                f"{folder}: {split} is there twice: {', '.join(path.name for path in paths)}; keep one"
            )
    if files:
        return _joined(
            str(folder), {split: [_read_file(path) for path in paths] for split, paths in files.items()}
        )
    folders = [path for path in entries if path.is_dir()]
    if any(path.name.lower() == "train" for path in folders):
        splits = {path.name.lower(): path for path in folders if path.name.lower() in _SPLITS}
        return _joined(
            str(folder),
            {name: [_image_folder(path, complete=name == "train")] for name, path in splits.items()},
        )
    if not folders:
        raise FedmsError(
            f"{folder}: holds neither train.* ({', '.join(_FORMATS)}) nor one sub-folder of images per class"
        )
    return {"train": [_image_folder(folder, complete=True)]}


def _image_folder(folder: Path, complete: bool) -> _Table:
    """One sub-folder of images per class; `complete`: none of them may be empty."""
    paths: list[Path] = []
    labels: list[str | None] = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            found = sorted(
                path.absolute()
                for path in entry.rglob("*")
                if path.suffix.lower() in SUFFIXES and path.is_file()
            )
            if not _is_text(entry.name):
                raise FedmsError(f"{entry}: its name, which is a class's, is not in UTF-8")
            if complete and not found:
                raise FedmsError(
                    f"{entry}: holds no images ({', '.join(SUFFIXES)}), so its class has no samples"
                )
            paths += found
            labels += [entry.name] * len(found)
    return _Table(
        str(folder), len(paths), {"label": labels}, {"image": [partial(Image.open, path) for path in paths]}
    )


def _read_hub(source: str) -> dict[str, list[_Table]]:
    import datasets

    name, _, subset = source.partition(":")
    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # without a network it would tell of each of its retries

    def read() -> Any:
        kind = type(datasets.load_dataset_builder(name, subset or None)).__module__.rpartition(".")[2]
        if kind not in _HUB_FORMATS:  # some hold pickles
            raise FedmsError(f"{source}: a data set of the format {kind}; known: {', '.join(_HUB_FORMATS)}")
        return datasets.load_dataset(name, subset or None)

    return _from_hub(source, read)


def _from_hub(source: str, read: Callable[[], Any]) -> dict[str, list[_Table]]:
    try:
        found = read()
        splits = dict(found) if isinstance(found, dict) else {"train": found}
        if len(splits) == 1:
            splits = {"train": next(iter(splits.values()))}
        tables = {
            name: [_from_datasets(f"{source} ({name})", split)]
            for name, split in splits.items()
            if name in _SPLITS
        }
    except FedmsError:
        raise
    except (
        Exception
    ) as error:  # many libraries speak here, with errors of their own: network, names, formats, disks
        raise FedmsError(f"{source}: cannot be loaded: {_brief(error)}") from None
    return _joined(source, tables)


def _joined(source: str, splits: dict[str, list[_Table]]) -> dict[str, list[_Table]]:
    """Validation joined to train."""
    if "train" not in splits:
        raise FedmsError(f"{source}: has no split named train; splits: {', '.join(splits) or 'none'}")
    order = [name for name in _SPLITS if name in splits]
    joined = {
        kind: [table for name in order if _SPLITS[name] == kind for table in splits[name]]
        for kind in ("train", "test")
    }
    return {kind: tables for kind, tables in joined.items() if tables}


def _from_datasets(where: str, data: Any) -> _Table:
    """A `datasets.Dataset` as a table: scalars as text, classes by their names, images left where they are."""
    import datasets

    data = data.with_format(None)
    table = _Table(where, len(data))
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image) or (
            isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        ):
            images = data.select_columns([name])
            missing = np.flatnonzero(np.asarray(images.with_format("arrow")[:][name].is_null()))
            if len(missing):
                raise FedmsError(f"{where}: row {missing[0] + 1} has no image (column {name!r})")
            images = images.cast_column(name, datasets.Image())
            table.images[name] = [partial(_decode, images, name, row) for row in range(table.rows)]
        elif isinstance(feature, datasets.ClassLabel | datasets.Value):
            values = data.select_columns([name])[:][name]
            if isinstance(feature, datasets.ClassLabel) and feature.names:
                table.class_names[name] = tuple(feature.names)
                # -1 is the hub's word for a label that is not published
                values = [
                    feature.names[v] if v is not None and 0 <= v < len(feature.names) else None
                    for v in values
                ]
            table.scalars[name] = [_scalar(value) for value in values]
    return table


def _decode(data: Any, name: str, row: int) -> Image.Image:
    return cast(Image.Image, data[row][name])


def _is_text(name: str) -> bool:
    """False for a file's name in another encoding."""
    return name.encode(errors="replace").decode() == name


def _scalar(value: Any) -> str | None:
    return None if value is None or value != value else str(value)  # NaN is the only value unequal to itself


def _brief(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
