"""Prefixes that several runs share: memory-mapped files, each named by a digest of its origin."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedms.core.files import dtype_name

UNFINISHED = ".part"
SHARE_OF_ROOM = 16
"""One process takes at most this part of the room that it has seen in the folder before it looks again."""


class PrefixStore:
    """A folder of hidden states, one file [tokens, d] for each owner and boundary, within a budget in bytes.

    The least recently used files are deleted first. The disk space of a deleted file is free once no process
    maps it. `content` describes data and model: all that determines the values beside the samples and the
    boundary.
    """

    def __init__(self, folder: Path, budget: int, content: str) -> None:
        self.folder = folder
        self.budget = budget
        self._content = content.encode()
        self._room = 0

    def find(
        self, rows: np.ndarray, boundary: int, shape: tuple[int, int], dtype: torch.dtype, below: str = ""
    ) -> Tensor | None:
        """The states of these samples at the input of block `boundary`, or None.

        `below` is the digest of the frozen pairs that they went through.
        """
        path = self._path(rows, boundary, dtype, below)
        try:
            values = mapped(path, shape, dtype)
            os.utime(path)
        except (OSError, RuntimeError):
            return None
        return values

    def place(
        self,
        rows: np.ndarray,
        boundary: int,
        shape: tuple[int, int],
        dtype: torch.dtype,
        below: str = "",
        evicts: bool = True,
    ) -> tuple[Tensor, Path] | None:
        """A mapped file for the states, to be filled and then finished; None if there is no room.

        With `evicts`, other files make room.
        """
        path = self._path(rows, boundary, dtype, below)
        path = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
        size = shape[0] * shape[1] * dtype.itemsize
        if size > self.budget:
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._make_room(size, evicts):
                return None
            return allocated(path, shape, dtype), path
        except (OSError, RuntimeError):
            return None

    def finish(self, path: Path) -> None:
        """Publish a filled file: from now on `find` finds it."""
        path.replace(path.with_suffix("").with_suffix(""))

    def _path(self, rows: np.ndarray, boundary: int, dtype: torch.dtype, below: str) -> Path:
        said = self._content + below.encode() + rows.tobytes()
        digest = hashlib.blake2b(said, digest_size=16).hexdigest()
        return self.folder / f"{digest}.{boundary}.{dtype_name(dtype)}"

    def _make_room(self, size: int, evicts: bool) -> bool:
        """Whether there is room for this many bytes; with `evicts`, files are deleted for it.

        The folder is listed again when a part of the room that was found has been taken. Other processes take
        theirs meanwhile, and a list for each of ten thousand files would take longer than the files.
        """
        if self._room >= size:
            self._room -= size
            return True
        there = []
        for path in self.folder.iterdir():
            try:
                about = path.stat()
            except FileNotFoundError:  # another process made room
                continue
            there.append((about.st_mtime_ns, about.st_size, path))
        free = self.budget - sum(each for _, each, _ in there)
        for _, each, path in sorted(there):
            if free >= size or not evicts:
                break
            if path.suffix != UNFINISHED:
                path.unlink(missing_ok=True)
                free += each
        self._room = max(0, free - size) // SHARE_OF_ROOM
        return evicts or free >= size


def remove_unfinished(folder: Path, process: int) -> None:
    """Remove the files that a process which has ended was filling."""
    for path in folder.glob(f"*.{process}{UNFINISHED}"):
        path.unlink(missing_ok=True)


def allocated(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A new file, mapped. If this fails, no file is left.

    Raises:
        OSError, RuntimeError: the disk has no room, or the file cannot be mapped.
    """
    try:
        reserve(path, shape[0] * shape[1] * dtype.itemsize)
        return mapped(path, shape, dtype)
    except (OSError, RuntimeError):
        path.unlink(missing_ok=True)
        raise


def mapped(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The values of a file, mapped.

    Raises:
        OSError, RuntimeError: there is no file of this size, or it cannot be mapped.
    """
    if path.stat().st_size != shape[0] * shape[1] * dtype.itemsize:
        raise OSError(f"{path}: is not of the size that was expected")
    return torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=dtype).view(shape)


def reserve(path: Path, size: int) -> None:
    """A file with all its bytes reserved.

    Writing to a mapped sparse file on a full disk would end the process (SIGBUS).
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
