"""A folder of clients, for `partition.rule: files`: each file in it, or each sub-folder, is one client.

A client's sub-folder has one of these layouts, and nothing else in it but hidden entries and those of
operating systems:

- files `train.*`, and `validation.*` and `test.*` if there are such (`valid`, `val` and `dev` are other names
  of validation; numbered files as in `fedms.data.folders`);
- folders `train/`, `validation/`, `test/`, each of files or of one sub-folder of pictures per class;
- one sub-folder of pictures per class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt
from fedms.core.paths import NAME_RULE, alike, is_name
from fedms.data.files import FORMATS, read_file
from fedms.data.folders import image_folder, is_junk, is_saved, split_files, split_folders
from fedms.data.splits import SPLITS, Source
from fedms.data.table import Table

LAYOUT = (
    f"a client's folder holds train.*, validation.* and test.* ({', '.join(FORMATS)}), or such folders, "
    "or one sub-folder of pictures per class, and nothing else"
)


def read_clients(folder: Path, config: DataConfig) -> Source:
    """The tables of all clients by split, in the order of the clients' names.

    Raises:
        FedmsError: the folder holds anything else than clients, a name cannot be a client's, a file is empty,
            or the columns of two files differ.
        OSError: it cannot be listed.
    """
    return _joined(_clients(folder), config)


def read_client(path: Path, config: DataConfig, name: str) -> Source:
    """The tables of one client by split, from its file or folder; errors as `read_clients`."""
    return _joined({name: path}, config)


def _joined(clients: Mapping[str, Path], config: DataConfig) -> Source:
    splits: dict[str, list[Table]] = {"train": [], "validation": [], "test": []}
    notes: list[str] = []
    for name, path in sorted(clients.items()):
        found, told = _client(path, config) if path.is_dir() else ({"train": [read_file(path, config)]}, [])
        notes += told
        for split, tables in found.items():
            if not sum(table.rows for table in tables):
                raise FedmsError(f"{path}: holds no samples" + f" in its {split} split" * path.is_dir())
            for table in tables:
                table.client = name
            splits[split if split in splits else "validation"] += tables
    _check_columns([table for tables in splits.values() for table in tables])
    return Source({split: tables for split, tables in splits.items() if tables}, notes)


def _clients(folder: Path) -> dict[str, Path]:
    """Files or folders of the clients by name."""
    entries = [entry for entry in sorted(folder.iterdir()) if not is_junk(entry.name)]
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if entry not in folders]
    either = "with partition.rule `files` either each file or each sub-folder is one client"
    if not entries:
        raise FedmsError(f"{folder}: holds no clients: {either}")
    if files and folders:
        both = f"files ({files[0].name}) beside folders ({folders[0].name})"
        raise FedmsError(f"{folder}: holds {both}: {either}")
    clients: dict[str, Path] = {}
    for path in entries:
        name = path.stem if files else path.name
        if not is_name(name):
            raise FedmsError(f"{folder}: {excerpt(repr(name))} cannot name a client: no {NAME_RULE}")
        if name.lower() in SPLITS:
            raise FedmsError(f"{path}: is named as a split, not as a client: {either}")
        if name in clients:
            raise FedmsError(
                f"{folder}: {clients[name].name} and {path.name} are two clients of the name {name!r}"
            )
        clients[name] = path
    if same := alike(clients):
        raise FedmsError(
            f"{folder}: clients {same[0]!r} and {same[1]!r} differ in nothing that any disk tells apart"
        )
    return clients


def _client(folder: Path, config: DataConfig) -> tuple[dict[str, list[Table]], list[str]]:
    """One client's tables by split, and lines about what was left out."""
    entries = [entry for entry in sorted(folder.iterdir()) if not is_junk(entry.name)]
    folders = [entry for entry in entries if entry.is_dir()]
    files = split_files(folder, entries)
    if not entries or is_saved(folder):
        raise FedmsError(f"{folder}: {LAYOUT}")
    if files:
        used = [path for paths in files.values() for path in paths]
        splits = {split: [read_file(path, config) for path in paths] for split, paths in files.items()}
        notes: list[str] = []
    elif any(path.name.lower() in SPLITS for path in folders):
        used = [path for path in folders if path.name.lower() in SPLITS]
        _check_no_more(entries, used)
        splits, notes = split_folders(folder, folders, config)
    else:
        used = folders
        _check_no_more(entries, used)
        pictures = image_folder(folder, complete=True).as_source()
        splits, notes = pictures.splits, pictures.notes
    _check_no_more(entries, used)
    if "train" not in splits:
        raise FedmsError(f"{folder}: has no split named train: {LAYOUT}")
    return splits, notes


def _check_no_more(entries: Sequence[Path], used: Sequence[Path]) -> None:
    """Raise FedmsError where a client's folder holds something that would be left out."""
    more = [path for path in entries if path not in used]
    if more:
        raise FedmsError(f"{more[0]}: {LAYOUT}")


def _check_columns(tables: Sequence[Table]) -> None:
    """Raise FedmsError where a file has other columns than the first one."""
    first = tables[0]
    for table in tables:
        for name in sorted(first.columns.keys() - table.columns.keys()):
            raise FedmsError(f"{table.where}: has no column {excerpt(repr(name))}, but {first.where} has one")
        for name in sorted(table.columns.keys() - first.columns.keys()):
            raise FedmsError(f"{table.where}: has a column {excerpt(repr(name))}, but {first.where} has none")
