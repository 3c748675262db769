"""Prefixes that runs share: files that any process maps, each named by all that decides its values."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedms.core.files import dtype_name

UNFINISHED = ".part"


class PrefixStore:
    """A folder of hidden states, [tokens, d] in a file, within a budget in bytes: those that were not used for longest go first.

    `content` says all that decides the values but the samples and the boundary: data and model. A file that goes while a process
    has it mapped goes when that process lets it go.
    """

    def __init__(self, folder: Path, budget: int, content: str) -> None:
        self.folder = folder
        self.budget = budget
        self._content = content.encode()

    def find(
        self, rows: np.ndarray, boundary: int, shape: tuple[int, int], dtype: torch.dtype
    ) -> Tensor | None:
        """The states of these samples as the input of block `boundary`, if they are there."""
        path = self._path(rows, boundary, dtype)
        try:
            values = mapped(path, shape, dtype)
            os.utime(path)
        except (OSError, RuntimeError):
            return None
        return values

    def place(
        self, rows: np.ndarray, boundary: int, shape: tuple[int, int], dtype: torch.dtype
    ) -> tuple[Tensor, Path] | None:
        """Room for them, to be filled and then finished; None where there is none."""
        path = self._path(rows, boundary, dtype)
        path = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
        size = shape[0] * shape[1] * dtype.itemsize
        if size > self.budget:
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            return allocated(path, shape, dtype), path
        except (OSError, RuntimeError):
            return None

    def finish(self, path: Path) -> None:
        """What stands in the file is whole: whoever looks for it finds it from now on."""
        path.replace(path.with_suffix("").with_suffix(""))

    def _path(self, rows: np.ndarray, boundary: int, dtype: torch.dtype) -> Path:
        digest = hashlib.blake2b(self._content + rows.tobytes(), digest_size=16).hexdigest()
        return self.folder / f"{digest}.{boundary}.{dtype_name(dtype)}"

    def _make_room(self, size: int) -> None:
        there = []
        for path in self.folder.iterdir():
            try:
                about = path.stat()
            except FileNotFoundError:  # another process made room
                continue
            there.append((about.st_mtime_ns, about.st_size, path))
        free = self.budget - sum(each for _, each, _ in there)
        for _, each, path in sorted(there):
            if free >= size:
                break
            if path.suffix != UNFINISHED:
                path.unlink(missing_ok=True)
                free += each


def allocated(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A new file, mapped. OSError or RuntimeError where the disk has no room for it or it cannot be mapped; no file is left then."""
    try:
        _allocate(path, shape[0] * shape[1] * dtype.itemsize)
        return mapped(path, shape, dtype)
    except (OSError, RuntimeError):
        path.unlink(missing_ok=True)
        raise


def mapped(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """What a file holds. OSError or RuntimeError where there is none of this size."""
    if path.stat().st_size != shape[0] * shape[1] * dtype.itemsize:
        raise OSError(f"{path}: is not of the size that was expected")
    return torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=dtype).view(shape)


def _allocate(path: Path, size: int) -> None:
    """A file whose bytes are there: to write where a sparse one finds the disk full would end the process (SIGBUS)."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
