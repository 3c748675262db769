"""The frozen-prefix cache: what comes out of the blocks below the lowest active one, computed once per sample.

Kept unpadded, in the device's memory within a budget, then in a memory-mapped file, then not at all. An owner's samples are computed among
themselves alone, since floating point depends on what else is in the batch: so a client's values are the same on any
worker and in any order. Only what found no room is computed batch by batch; which samples these are depends on who shares the
budget, so a warning says that the last bits then depend on the number of workers.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedms.data.inputs import Inputs, batches
from fedms.model import flops
from fedms.model.backbone import Backbone, attention_mask
from fedms.model.device import moved

FILL_BATCH = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Some samples of one owner (`client-03/train`), in a fixed order."""

    owner: str
    rows: np.ndarray
    """Their rows in the data set, int64 [n]"""
    labels: Tensor
    """int64 [n]"""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class _Entry:
    boundary: int
    offsets: np.ndarray
    """[n + 1], in tokens"""
    values: Tensor
    """[sum of tokens, d], on the device or mapped from a file"""
    path: Path | None = None
    flops: int = 0

    @property
    def bytes(self) -> int:
        return self.values.numel() * self.values.element_size()


class PrefixCache:
    """Hidden states at one boundary per owner.

    Attributes:
        flops: forward operations of prefixes computed so far.
        kept_flops: those of them whose outcome was kept.
        used: by owner, the boundary of what was kept and has been used since the user of the cache last cleared it, and what it took.
    """

    def __init__(
        self,
        backbone: Backbone,
        inputs: Inputs,
        memory: int,
        disk: int,
        folder: Path,
        enabled: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.backbone = backbone
        self.inputs = inputs
        self.memory = memory
        self.disk = disk
        self.folder = folder
        self.enabled = enabled
        self.dtype = torch.bfloat16 if backbone.dtype == torch.bfloat16 else dtype
        self.flops = 0
        self.kept_flops = 0
        self.used: dict[str, tuple[str, int]] = {}
        self._entries: dict[str, _Entry] = {}
        self._without_room: set[str] = set()
        self._image_tokens: int | None = None

    def hidden(self, samples: Samples, boundary: int, picks: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Input of block `boundary` for the samples at positions `picks` (one at least), [len(picks), tokens, d], and the mask."""
        if len(picks) == 0:
            raise ValueError(f"{samples.owner}: no samples were asked for")
        entry = self._entry(samples, boundary) if self.enabled else None
        if entry is None:
            hidden, mask = self._compute(samples.rows[picks], boundary)
            return hidden.to(self.dtype).to(self.backbone.dtype), mask  # as if it had been kept
        self.used[samples.owner] = str(boundary), entry.flops
        starts, ends, device = entry.offsets[picks], entry.offsets[picks + 1], self.backbone.device
        longest = int((ends - starts).max())
        # a short sample's last token stands in the places that are left, where the mask hides it
        lines = torch.from_numpy(np.minimum(starts[:, None] + np.arange(longest), ends[:, None] - 1))
        values = entry.values.index_select(0, moved(lines.flatten(), entry.values.device)).view(*lines.shape, -1)
        mask = attention_mask(torch.from_numpy(ends - starts), longest)
        return moved(values, device).to(self.backbone.dtype), None if mask is None else moved(mask, device)

    @torch.no_grad()
    def _compute(self, rows: np.ndarray, boundary: int) -> tuple[Tensor, Tensor | None]:
        inputs, mask = self.inputs.batch(rows)
        device = self.backbone.device
        mask = None if mask is None else moved(mask, device)
        self.backbone.attach({})
        hidden = self.backbone.run(self.backbone.embed(moved(inputs, device)), mask, 0, boundary)
        self.flops += flops.forward(self.backbone, len(rows), hidden.shape[1], 0, boundary)
        return hidden, mask

    def _entry(self, samples: Samples, boundary: int) -> _Entry | None:
        if samples.owner in self._without_room:
            return None
        entry = self._entries.get(samples.owner)
        if entry is not None and entry.boundary == boundary:
            return entry
        self._drop(samples.owner)
        lengths = self._lengths(samples.rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        made = self._place(samples.owner, boundary, offsets)
        if made is None:
            self._refuse(samples.owner)
            return None
        before = self.flops
        for picks in batches(lengths, FILL_BATCH):
            hidden, _ = self._compute(samples.rows[picks], boundary)
            for line, pick in zip(hidden.to(made.values.device), picks, strict=True):
                made.values[offsets[pick] : offsets[pick + 1]] = line[: lengths[pick]]
        made.flops = self.flops - before
        self.kept_flops += made.flops
        self._entries[samples.owner] = made
        return made

    @torch.no_grad()
    def _lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens to keep of each sample; known before any block runs."""
        if self.backbone.kind == "text":
            return self.inputs.lengths(rows)
        if self._image_tokens is None:  # the same for all images
            pixels, _ = self.inputs.batch(rows[:1])
            self._image_tokens = self.backbone.embed(pixels.to(self.backbone.device)).shape[1]
        return np.full(len(rows), self._image_tokens, dtype=np.int64)

    def _place(self, owner: str, boundary: int, offsets: np.ndarray) -> _Entry | None:
        """Room for the values: memory first, then disk, else None."""
        shape = (int(offsets[-1]), self.backbone.width)
        size = shape[0] * shape[1] * self.dtype.itemsize
        used = {on_disk: sum(e.bytes for e in self._entries.values() if (e.path is not None) == on_disk) for on_disk in (False, True)}
        if used[False] + size <= self.memory:
            with suppress(torch.OutOfMemoryError):  # of a GPU that has less than the budget allows
                return _Entry(boundary, offsets, torch.empty(shape, dtype=self.dtype, device=self.backbone.device))
        if used[True] + size > self.disk:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{owner.replace('/', '-')}.{str(self.dtype).removeprefix('torch.')}"
        try:
            _allocate(path, size)
            mapped = torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=self.dtype)
            return _Entry(boundary, offsets, mapped.view(shape), path)
        except (OSError, RuntimeError):  # less is free than the budget allows, or it cannot be mapped
            path.unlink(missing_ok=True)
            return None

    def _refuse(self, owner: str) -> None:
        """For good: whatever the boundary, an owner needs the same room, and the others hold theirs."""
        if not self._without_room:
            log.warning(
                "prefix cache: no room for %s within this process's %d MB of memory and %d MB of disk: "
                "computed again for every batch, so the last bits of results may depend on engine.workers",
                owner,
                self.memory >> 20,
                self.disk >> 20,
            )
        self._without_room.add(owner)

    def _drop(self, owner: str) -> None:
        entry = self._entries.pop(owner, None)
        if entry is not None and entry.path is not None:
            entry.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._entries.clear()
        self._without_room.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _allocate(path: Path, size: int) -> None:
    """A file whose bytes are there: to write where a sparse one finds the disk full would end the process (SIGBUS)."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
