"""Folders as sources: files or sub-folders named by split, one sub-folder of images per class, saved
`datasets`.

One rule says which entries are samples, at every level. Hidden entries (names that begin with a dot, as
`.ipynb_checkpoints` and the `._x` of macOS) and the folders and files of operating systems are none of them.
A split is a file `train.*`, numbered files as the hub names them (`train-00000-of-00002.parquet`), or a
folder `train/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.data.files import FORMATS, SHEET_HINT, SHEETS, read_file
from fedms.data.hub import read_saved
from fedms.data.images import SUFFIXES, PictureFile
from fedms.data.splits import SPLITS, Source, joined
from fedms.data.table import Table

SYSTEM_ENTRIES = frozenset(
    (
        "__macosx",
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "@eadir",
        "$recycle.bin",
        "lost+found",
    )
)
"""Names in lower case that operating systems and file servers leave in folders."""
SILENT = (
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    ".ds_store",
    ".gitattributes",
    ".gitignore",
    ".gitkeep",
    ".git",
)
"""Of what is left out, names that nobody takes for samples: no line tells of them."""
SHARD = re.compile(r"(?P<split>[a-z]+)(?:-(?P<number>\d+)(?:-of-(?P<count>\d+)(?:-[0-9a-f]{16})?)?)?")
"""The name of a split's file, without its suffix"""
SHOWN = 3
"""Names at most in a line about files that were left out."""


def is_junk(name: str) -> bool:
    """Whether an entry of a folder is hidden, or an operating system's."""
    return name.startswith(".") or name.lower() in SYSTEM_ENTRIES


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_folder(folder: Path, config: DataConfig) -> Source:
    """The tables of a folder by split.

    Raises:
        FedmsError: it holds no samples in a layout that we know, or some of them cannot be read.
        OSError: it cannot be listed.
    """
    if is_saved(folder):
        return read_saved(folder)
    entries = [entry for entry in sorted(folder.iterdir()) if not is_junk(entry.name)]
    entries = [entry for entry in entries if not entry.name.startswith("_")]
    if files := split_files(folder, entries):
        tables = {split: [read_file(path, config) for path in paths] for split, paths in files.items()}
        used = {path for paths in files.values() for path in paths}
        return joined(str(folder), tables, _left_out(folder, _not_used(entries, used)))
    folders = [path for path in entries if path.is_dir()]
    if any(path.name.lower() == "train" for path in folders):
        return joined(str(folder), *split_folders(folder, folders, config))
    inner = [path for path in folders if _holds_splits(path)]
    if len(inner) == 1:  # a clone of a hub data set keeps its files in `data/`
        return read_folder(inner[0], config)
    if inner:
        names = ", ".join(path.name for path in inner)
        raise FedmsError(f"{folder}: holds several data sets ({names}): name one, as in {inner[0]}")
    if not folders:
        raise FedmsError(_nothing_here(folder, entries))
    return image_folder(folder, complete=True).as_source()


# --- files of a split ---------------------------------------------------------------------------------------


def split_files(folder: Path, entries: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of each split, in the order of their names.

    Raises:
        FedmsError: a split is there in two formats, or not all its numbered files are there.
    """
    files: dict[str, list[Path]] = {}
    counts: dict[str, set[int]] = {}
    for path in entries:
        name = SHARD.fullmatch(path.stem.lower())
        if name and name["split"] in SPLITS and path.suffix.lower() in FORMATS and path.is_file():
            files.setdefault(name["split"], []).append(path)
            if name["count"]:
                counts.setdefault(name["split"], set()).add(int(name["count"]))
    for split, paths in files.items():
        plain = [path for path in paths if path.stem.lower() == split]
        if len({path.suffix.lower() for path in paths}) > 1 or (plain and len(paths) > 1):
            names = ", ".join(path.name for path in paths)
            raise FedmsError(f"{folder}: {split} is there twice: {names}; keep one")
        if split in counts and counts[split] != {len(paths)}:
            of = max(counts[split])
            raise FedmsError(f"{folder}: {split} has {len(paths)} of {of} numbered files; fetch the others")
    return files


def _holds_splits(folder: Path) -> bool:
    """Whether tables by split lie in this folder: `train.csv`, or `train/0000.parquet`."""
    entries = [entry for entry in folder.iterdir() if not is_junk(entry.name)]
    train = [entry for entry in entries if entry.name.lower() == "train" and entry.is_dir()]
    return bool(split_files(folder, entries)) or any(_tables_in(path) for path in train)


def _tables_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in FORMATS and not is_junk(path.name) and path.is_file()
    )


def _not_used(entries: Iterable[Path], used: set[Path]) -> list[Path]:
    """Files that look like tables and are of no split."""
    looks = (*FORMATS, *SHEETS)
    return [path for path in entries if path not in used and path.suffix.lower() in looks]


def _nothing_here(folder: Path, entries: Iterable[Path]) -> str:
    line = f"{folder}: holds neither train.* ({', '.join(FORMATS)}) nor one sub-folder of images per class"
    for path in entries:
        if path.suffix.lower() in SHEETS:
            return f"{line}; {path.name}: {SHEET_HINT}"
    tables = [path for path in entries if path.suffix.lower() in FORMATS]
    return f"{line}; to read {tables[0].name}, name that file" if len(tables) == 1 else line


# --- folders of splits and of classes -----------------------------------------------------------------------


def split_folders(
    folder: Path, folders: Iterable[Path], config: DataConfig
) -> tuple[dict[str, list[Table]], list[str]]:
    """`train/`, `validation/`, `test/`: each holds tables, or one sub-folder of images per class."""
    tables: dict[str, list[Table]] = {}
    notes: list[str] = []
    for path in folders:
        split = path.name.lower()
        if split not in SPLITS:
            notes += _left_out(folder, [path])
            continue
        files, classes = _tables_in(path), any(e.is_dir() and not is_junk(e.name) for e in path.iterdir())
        if files and not classes:
            if len({file.suffix.lower() for file in files}) > 1:
                names = ", ".join(file.name for file in files[:SHOWN])
                raise FedmsError(f"{path}: holds files of several formats ({names}); keep one format")
            tables[split] = [read_file(file, config) for file in files]
        else:
            found = image_folder(path, complete=split == "train").as_source()
            tables[split], notes = found.splits["train"], notes + found.notes
    return tables, notes


class _Pictures:
    """Pictures of one sub-folder per class, and what was left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []
        self.labels: list[str | None] = []
        self.left: list[Path] = []

    def as_source(self) -> Source:
        openers = [PictureFile(path) for path in self.paths]
        table = Table(str(self.folder), len(self.paths), {"label": self.labels}, {"image": openers})
        return Source({"train": [table]}, _left_out(self.folder, self.left))


def image_folder(folder: Path, complete: bool) -> _Pictures:
    """One sub-folder of images per class; `complete`: none of them may be empty."""
    found = _Pictures(folder)
    entries = sorted(folder.iterdir())
    classes = [entry for entry in entries if entry.is_dir() and not is_junk(entry.name)]
    loose = [entry for entry in entries if entry not in classes]
    if not classes and any(entry.suffix.lower() in SUFFIXES for entry in loose):
        raise FedmsError(
            f"{folder}: its images lie in no sub-folder, so they have no class: make one sub-folder per class"
        )
    found.left += [
        entry for entry in loose if entry.is_dir() or entry.suffix.lower() in (*SUFFIXES, *FORMATS)
    ]
    for entry in classes:
        if entry.name.encode(errors="replace").decode() != entry.name:
            raise FedmsError(f"{entry}: its name, which is a class's, is not in UTF-8")
        pictures, others = pictures_below(entry)
        if complete and not pictures:
            raise FedmsError(f"{entry}: holds no images ({', '.join(SUFFIXES)}), so its class has no samples")
        found.paths += pictures
        found.labels += [entry.name] * len(pictures)
        found.left += others
    return found


def pictures_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder and of all folders in it, sorted; and what else is there."""
    pictures: list[Path] = []
    others: list[Path] = []
    for place, folders, files in os.walk(folder):
        others += [Path(place, name) for name in folders if is_junk(name)]
        folders[:] = [name for name in folders if not is_junk(name)]
        for name in files:
            path = Path(place, name)
            is_picture = path.suffix.lower() in SUFFIXES and not is_junk(name) and path.is_file()
            (pictures if is_picture else others).append(path)
    return sorted(path.absolute() for path in pictures), sorted(others)


def _left_out(folder: Path, paths: Iterable[Path]) -> list[str]:
    """A line about files and folders that were left out, if any."""
    names = [str(path.relative_to(folder)) for path in paths if path.name.lower() not in SILENT]
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{folder}: left out, since not a sample's file: {', '.join(names[:SHOWN])}{more}"]
