"""What one client keeps on its own disk."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from fedms.core.files import (
    read_arrays,
    remove,
    write_arrays,
)

KEPT_BEFORE = 2
"""Versions of a client's file kept beside the newest one. A repeated round needs the version before it. If
the newest checkpoint is damaged, the round before that one is repeated, too."""

Version = tuple[int, int]
Content = tuple[dict[str, Tensor], dict[str, Any]]
"""Arrays and plain values of a file."""


class Recent:
    """The contents of recently read or written files, up to a number of bytes.

    The longest unused file goes first.

    Only for files that no other process changes meanwhile. The files stay on disk; the process need not read
    and check them again. The arrays must not be changed in place.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._held: OrderedDict[Path, Content] = OrderedDict()
        self._bytes = 0

    def read(self, path: Path) -> Content:
        """The content of the file, from memory if it is held; errors as `read_arrays`."""
        if path not in self._held:
            self.keep(path, *read_arrays(path))
        self._held.move_to_end(path)
        arrays, meta = self._held[path]
        return dict(arrays), dict(meta)

    def keep(self, path: Path, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Hold the present content of the file."""
        self.forget(path)
        self._held[path] = dict(arrays), dict(meta)
        self._bytes += _size(arrays)
        while self._bytes > self._room and len(self._held) > 1:
            self.forget(next(iter(self._held)))

    def forget(self, path: Path) -> None:
        """Hold the file's content no longer."""
        if path in self._held:
            self._bytes -= _size(self._held.pop(path)[0])


def _size(arrays: Mapping[str, Tensor]) -> int:
    return 1024 + sum(
        array.nbytes for array in arrays.values()
    )  # no content is for nothing, however little it holds


class ClientFolder:
    """A client's files on its own disk, by kind, each versioned by (stage, round). The folder is listed once.

    A task reads what stood before its round. So a repeated round gives the same result.
    """

    _name = re.compile(r"(?P<kind>[a-z]+)-(?P<stage>\d+)-(?P<round>\d+)\.safetensors")

    def __init__(self, path: Path, recent: Recent | None = None) -> None:
        self.path = path
        self._recent = recent or Recent(0)
        self._found: dict[str, dict[Version, Path]] | None = None

    def versions(self) -> dict[str, dict[Version, Path]]:
        """All versioned files, by kind."""
        if self._found is None:
            self._found = self._look()
        return self._found

    def _look(self) -> dict[str, dict[Version, Path]]:
        found: dict[str, dict[Version, Path]] = {}
        with suppress(FileNotFoundError):  # the client has kept nothing yet
            for name in os.listdir(self.path):  # noqa: PTH208 (a fifth of the time that `glob` takes)
                if match := self._name.fullmatch(name):
                    found.setdefault(match["kind"], {})[int(match["stage"]), int(match["round"])] = (
                        self.path / name
                    )
        return {kind: dict(sorted(files.items())) for kind, files in sorted(found.items())}

    def load(self, kind: str, before: Version) -> Content:
        """The newest version of this kind before (stage, round); empty if there is none."""
        files = self.versions().get(kind, {})
        older = [version for version in files if version < before]
        return self._recent.read(files[max(older)]) if older else ({}, {})

    def save(self, kind: str, at: Version, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write a version, and remove those that no repeated round can need."""
        path = self.path / f"{kind}-{at[0]}-{at[1]}.safetensors"
        self._recent.forget(path)
        self._recent.keep(path, *write_arrays(path, arrays, meta))
        files = self.versions().setdefault(kind, {})
        files[at] = path
        for version in sorted(each for each in files if each < at)[:-KEPT_BEFORE]:
            remove(files.pop(version))

    def newest(self) -> dict[str, Version]:
        """The newest version of each kind."""
        return {kind: max(files) for kind, files in self.versions().items() if files}

    def check(self, newest: Mapping[str, Version]) -> None:
        """Raise FedmsError if one of these versions is missing or damaged."""
        for kind, at in newest.items():
            read_arrays(self.path / f"{kind}-{at[0]}-{at[1]}.safetensors")

    def rewind(self, newest: Mapping[str, Version]) -> None:
        """Remove all versions that are newer than these."""
        for kind, files in self.versions().items():
            for version in list(files):
                if kind not in newest or version > newest[kind]:
                    remove(files.pop(version))
