"""Where kept hidden states lie: in a store that processes share, in the device's memory, or on disk."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedms.core.files import dtype_name
from fedms.data.federated import Samples
from fedms.model.backbone import Backbone
from fedms.model.lora import Below
from fedms.training.prefix_store import PrefixStore, allocated, mapped


@dataclass
class Entry:
    """One owner's hidden states at one boundary."""

    boundary: int
    offsets: np.ndarray
    """[n + 1], in tokens"""
    values: Tensor | None
    """[sum of tokens, d], on the device or mapped from a file; None if it is mapped at each read"""
    place: Literal["memory", "disk", "store"] = "memory"
    path: Path | None = None
    """The file, if it belongs to this process alone or is unfinished"""
    flops: int = 0
    below: Below | None = None
    """Frozen pairs that the states went through"""

    def is_at(self, boundary: int, below: Below | None) -> bool:
        """Whether these are the states at this boundary, through these pairs."""
        return self.boundary == boundary and digest(self.below) == digest(below)


class Places:
    """Finds places for states, within budgets of memory and disk in bytes, and counts what is held."""

    def __init__(
        self,
        backbone: Backbone,
        dtype: torch.dtype,
        memory: int,
        disk: int,
        folder: Path,
        store: PrefixStore | None,
    ) -> None:
        self.backbone = backbone
        self.dtype = dtype
        self.memory = memory
        self.disk = disk
        self.folder = folder
        self.store = store
        self._held: Counter[str] = Counter()

    def shape(self, offsets: np.ndarray) -> tuple[int, int]:
        """Of the states: tokens and width."""
        return int(offsets[-1]), self.backbone.width

    def bytes(self, offsets: np.ndarray) -> int:
        """That the states take."""
        return math.prod(self.shape(offsets)) * self.dtype.itemsize

    def stored(
        self, samples: Samples, boundary: int, offsets: np.ndarray, below: Below | None
    ) -> Entry | None:
        """The store's states, or None."""
        if self.store is None:
            return None
        values = self.store.find(samples.rows, boundary, self.shape(offsets), self.dtype, digest(below))
        return None if values is None else Entry(boundary, offsets, values, "store", below=below)

    def has_memory(self, offsets: np.ndarray) -> bool:
        """Whether the states fit into what is left of the memory."""
        return self._held["memory"] + self.bytes(offsets) <= self.memory

    def place(
        self, samples: Samples, boundary: int, offsets: np.ndarray, below: Below | None
    ) -> Entry | None:
        """An entry with room for the values; None without room. It is not held before `hold`."""
        shape = self.shape(offsets)
        if self.store and (
            room := self.store.place(samples.rows, boundary, shape, self.dtype, digest(below))
        ):
            return Entry(boundary, offsets, room[0], "store", room[1], below=below)
        if self.has_memory(offsets):
            with suppress(torch.OutOfMemoryError):  # a GPU can have less memory than the budget
                values = torch.empty(shape, dtype=self.dtype, device=self.backbone.device)
                return Entry(boundary, offsets, values, below=below)
        if self._held["disk"] + self.bytes(offsets) > self.disk:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{samples.owner.replace('/', '-')}.{dtype_name(self.dtype)}"
        try:
            values = allocated(path, shape, self.dtype)
            return Entry(boundary, offsets, values, "disk", path, below=below)
        except (OSError, RuntimeError):  # the disk is full, or the file cannot be mapped
            return None

    def spare(self, samples: Samples, boundary: int, offsets: np.ndarray) -> Entry | None:
        """An entry for states that may be needed later, which is held; None without memory for it.

        Files of a store count as memory here, so that no run writes many times what it reads.
        """
        entry = None
        if self.store:
            if self._held["spare"] + self.bytes(offsets) <= self.memory and (
                room := self.store.place(
                    samples.rows, boundary, self.shape(offsets), self.dtype, evicts=False
                )
            ):
                self._held["spare"] += self.bytes(offsets)
                entry = Entry(boundary, offsets, room[0], "store", room[1])
        elif self.has_memory(offsets):
            with suppress(torch.OutOfMemoryError):
                values = torch.empty(self.shape(offsets), dtype=self.dtype, device=self.backbone.device)
                entry = Entry(boundary, offsets, values)
        if entry:
            self.hold(entry)
        return entry

    def states(self, entry: Entry) -> Tensor:
        """An entry's values; those on disk are mapped for this call."""
        if entry.values is not None:
            return entry.values
        assert entry.path is not None
        return mapped(entry.path, self.shape(entry.offsets), self.dtype)

    def finish(self, entry: Entry) -> None:
        """The entry has its values."""
        if self.store and entry.place == "store" and entry.path:
            self.store.finish(entry.path)
            entry.path = None
        elif entry.place == "disk":
            # many clients have more files than a process may map, and mapped files count as its memory
            entry.values = None

    def hold(self, entry: Entry) -> None:
        """Count what the entry takes."""
        self._held[entry.place] += self.bytes(entry.offsets)

    def release(self, entry: Entry) -> None:
        """Give the entry's room back, and remove a file that is this process's own."""
        self._held[entry.place] -= self.bytes(entry.offsets)
        if entry.path is not None:
            entry.path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Hold nothing any more."""
        self._held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def digest(below: Below | None) -> str:
    """Of the frozen pairs below a boundary; empty without any."""
    return below.digest if below else ""
