"""The frozen-prefix cache: outputs of the blocks below the lowest active block, computed once per sample.

They are kept unpadded: in the device's memory within a budget, else in a memory-mapped file, else not at
all. The last bits of a value depend on the other samples of its batch. So a batch has samples of one owner
only, and a client's values are the same on every worker and in every order. Values without room are computed
again for every training batch. Which owners these are depends on the clients that share the budget, so a
warning says that the last bits may depend on the number of workers.
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedms.core.files import dtype_name
from fedms.data.federated import Samples
from fedms.model import flops
from fedms.model.arrays import moved
from fedms.model.backbone import Backbone, Lengths, ragged
from fedms.model.lora import Below
from fedms.model.packing import Packing, chunks, shapes
from fedms.training.inputs import Inputs, batches
from fedms.training.prefix_store import PrefixStore, allocated, mapped

FILL_BATCH = 64
MAPPED_AT_ONCE = 64
"""Files of a store that a process holds mapped. It finds others again when it needs them."""

log = logging.getLogger(__name__)


@dataclass
class _Entry:
    boundary: int
    offsets: np.ndarray
    """[n + 1], in tokens"""
    values: Tensor | None
    """[sum of tokens, d], on the device or mapped from a file; None if it is mapped at each read"""
    place: Literal["memory", "disk", "store"] = "memory"
    path: Path | None = None
    """The file, if it belongs to this cache or is unfinished"""
    flops: int = 0
    below: Below | None = None
    """Frozen pairs that the states went through"""

    def is_at(self, boundary: int, below: Below | None) -> bool:
        """Whether these are the states at this boundary, through these pairs."""
        return self.boundary == boundary and _digest(self.below) == _digest(below)


class PrefixCache:
    """Hidden states at one boundary per owner. With a store, they are shared with other runs.

    Attributes:
        flops: forward operations of all prefixes computed so far.
        kept_flops: operations of the prefixes that were kept.
        used: for each owner with kept states that were used since the caller last cleared this dict: their
            boundary, and the operations to compute them from the inputs.
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
        store: PrefixStore | None = None,
    ) -> None:
        self.backbone = backbone
        self.inputs = inputs
        self.memory = memory
        self.disk = disk
        self.folder = folder
        self.enabled = enabled
        self.dtype = torch.bfloat16 if backbone.dtype == torch.bfloat16 else dtype
        self.store = store
        self.flops = 0
        self.kept_flops = 0
        self.used: dict[str, tuple[str, int]] = {}
        self._entries: dict[str, _Entry] = {}
        self._held: Counter[str] = Counter()
        self._without_room: set[str] = set()
        self._image_tokens: int | None = None

    def hidden(
        self, samples: Samples, boundary: int, picks: np.ndarray, below: Below | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The samples at `picks` as the input of block `boundary`, [len(picks), tokens, d], and their
        lengths.

        Args:
            below: frozen pairs of the blocks below, if they have any.

        Raises:
            ValueError: `picks` is empty.
        """
        hidden, lengths = self._hidden(samples, boundary, picks, below, packed=False)
        assert not isinstance(lengths, Packing)
        return hidden, lengths

    def packed(
        self, samples: Samples, boundary: int, picks: np.ndarray, below: Below | None = None
    ) -> tuple[Tensor, Packing]:
        """As `hidden`, as a packed batch [1, tokens, d]; for a backbone that `packs`."""
        hidden, packing = self._hidden(samples, boundary, picks, below, packed=True)
        assert isinstance(packing, Packing)
        return hidden, packing

    def _hidden(
        self, samples: Samples, boundary: int, picks: np.ndarray, below: Below | None, packed: bool
    ) -> tuple[Tensor, Lengths]:
        if len(picks) == 0:
            raise ValueError(f"{samples.owner}: no samples were asked for")
        self.fill([samples], boundary, below)
        entry = self._entries.get(samples.owner)
        if entry is None:
            hidden, lengths = self._compute(samples.rows[picks], boundary, below, packed)
            return hidden.to(self.dtype).to(self.backbone.dtype), lengths  # rounded as if it had been kept
        self.used[samples.owner] = f"{boundary} {_digest(below)}".rstrip(), entry.flops
        return self._gathered(entry, picks, packed)

    def _gathered(self, entry: _Entry, picks: np.ndarray, packed: bool) -> tuple[Tensor, Lengths]:
        starts, ends, device = entry.offsets[picks], entry.offsets[picks + 1], self.backbone.device
        if packed:
            tokens = torch.from_numpy(np.concatenate([*map(np.arange, starts, ends)]))
            return self._states(entry)[tokens][None].to(self.backbone.dtype), Packing(ends - starts)
        longest = int((ends - starts).max())
        # padding repeats a sample's last token, which no token sees
        lines = torch.from_numpy(np.minimum(starts[:, None] + np.arange(longest), ends[:, None] - 1))
        states = self._states(entry)
        values = states.index_select(0, moved(lines.flatten(), states.device)).view(*lines.shape, -1)
        return moved(values, device).to(self.backbone.dtype), ragged(torch.from_numpy(ends - starts), longest)

    @torch.no_grad()
    def _compute(
        self, rows: np.ndarray, boundary: int, below: Below | None, packed: bool
    ) -> tuple[Tensor, Lengths]:
        inputs, padded = self.inputs.batch(rows)
        lengths: Lengths = padded
        hidden = self.backbone.embed(moved(inputs, self.backbone.device), padded)
        if packed:
            lengths = Packing(self.inputs.lengths(rows))
            hidden = lengths.pack(hidden)
        return self._run(hidden, lengths, 0, boundary, below), lengths

    def _run(
        self,
        hidden: Tensor,
        lengths: Lengths,
        start: int,
        boundary: int,
        below: Below | None = None,
    ) -> Tensor:
        self.backbone.attach(below.pairs if below else {})
        for count, tokens in shapes(hidden, lengths):
            self.flops += self._operations(count, tokens, start, boundary, below)
        return self.backbone.run(hidden, lengths, start, boundary)

    def _operations(self, count: int, tokens: int, start: int, boundary: int, below: Below | None) -> int:
        """Operations of a pass over `count` samples of `tokens` tokens each."""
        found = flops.forward(self.backbone, count, tokens, start, boundary)
        if below is None:
            return found
        rank = next(iter(below.pairs.values())).A.shape[-2]
        found += flops.pairs(self.backbone, count, tokens, rank, {block for block, _ in below.pairs})
        kept = [key for key, pair in below.pairs.items() if pair.residual is not None]
        return found + flops.residuals(self.backbone, count, tokens, kept)

    @torch.no_grad()
    def _go_on(self, lower: _Entry, boundary: int, picks: np.ndarray, packed: bool) -> Tensor:
        """Continue from the states at a lower boundary.

        The bits are those of one pass, since padding has no effect on real tokens.
        """
        return self._run(*self._gathered(lower, picks, packed), lower.boundary, boundary)

    def fill(self, several: Sequence[Samples], boundary: int, below: Below | None = None) -> None:
        """Compute these owners' prefixes and keep them, as far as there is room. Texts are packed on a CPU.

        Several owners are computed in common batches. That is less work for small owners, but the last bits
        then depend on the other owners (`deterministic: false`).
        """
        made = []
        for samples in several if self.enabled else ():
            entry = self._entries.get(samples.owner)
            if samples.owner in self._without_room or (entry and entry.is_at(boundary, below)):
                continue
            self._drop(samples.owner)
            offsets = np.concatenate([[0], np.cumsum(self._lengths(samples.rows))])
            if stored := self._stored(samples, boundary, offsets, below):
                self._keep(samples.owner, stored)
            elif placed := self._place(samples, boundary, offsets, below):
                self._keep(samples.owner, placed)
                made.append((samples, placed))
            else:
                self._refuse(samples.owner)
        if not made:
            return
        try:
            self._compute_all(made, boundary, below)
        except BaseException:
            for samples, _ in made:
                self._drop(samples.owner)
            raise

    def _compute_all(
        self, made: Sequence[tuple[Samples, _Entry]], boundary: int, below: Below | None
    ) -> None:
        before = self.flops
        lower = self._lower(*made[0]) if len(made) == 1 and below is None else None
        rows = np.concatenate([samples.rows for samples, _ in made])
        places = [
            (self._states(entry), *ends) for _, entry in made for ends in itertools.pairwise(entry.offsets)
        ]
        lengths, packed = np.array([end - start for _, start, end in places]), self.backbone.packs
        for picks in self._batches(lengths):
            hidden = (
                self._go_on(lower, boundary, picks, packed)
                if lower
                else self._compute(rows[picks], boundary, below, packed)[0]
            ).to(places[0][0].device)
            lines = torch.split(hidden[0], lengths[picks].tolist()) if packed else hidden
            for line, (values, start, end) in zip(lines, (places[pick] for pick in picks), strict=True):
                values[start:end] = line[: end - start]
        self.kept_flops += self.flops - before
        for _, entry in made:
            entry.flops = self._takes(np.diff(entry.offsets), boundary, below)
            if self.store and entry.place == "store" and entry.path:
                self.store.finish(entry.path)
                entry.path = None
            elif entry.place == "disk":
                # many clients have more files than a process may map, and mapped files count as its memory
                entry.values = None

    def _lower(self, samples: Samples, made: _Entry) -> _Entry | None:
        """The store's states at the nearest lower boundary; None if values would be rounded twice."""
        below = range(made.boundary - 1, 0, -1) if self.dtype == self.backbone.dtype else ()
        return next(
            (found for boundary in below if (found := self._stored(samples, boundary, made.offsets))), None
        )

    def _batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """The batches in which prefixes are computed."""
        return chunks(lengths) if self.backbone.packs else batches(lengths, FILL_BATCH)

    def _takes(self, lengths: np.ndarray, boundary: int, below: Below | None) -> int:
        """Operations to compute an owner's states from the inputs."""
        computed = lengths.copy()
        for picks in () if self.backbone.packs else self._batches(lengths):
            computed[picks] = lengths[picks].max()
        each = zip(*np.unique(computed, return_counts=True), strict=True)
        return sum(self._operations(int(count), int(tokens), 0, boundary, below) for tokens, count in each)

    def _stored(
        self, samples: Samples, boundary: int, offsets: np.ndarray, below: Below | None = None
    ) -> _Entry | None:
        """The store's states at this boundary, or None."""
        shape = self._shape(offsets)
        if self.store is None:
            return None
        values = self.store.find(samples.rows, boundary, shape, self.dtype, _digest(below))
        if values is None:
            return None
        operations = self._takes(np.diff(offsets), boundary, below)
        return _Entry(boundary, offsets, values, "store", flops=operations, below=below)

    @torch.no_grad()
    def _lengths(self, rows: np.ndarray) -> np.ndarray:
        """Number of tokens to keep of each sample, [n]; no block needs to run for it."""
        if self.backbone.kind == "text":
            return self.inputs.lengths(rows)
        if self._image_tokens is None:  # the same for all images
            pixels, _ = self.inputs.batch(rows[:1])
            self._image_tokens = self.backbone.embed(pixels.to(self.backbone.device)).shape[1]
        return np.full(len(rows), self._image_tokens, dtype=np.int64)

    def _place(
        self, samples: Samples, boundary: int, offsets: np.ndarray, below: Below | None
    ) -> _Entry | None:
        """An entry with room for the values, in the store, in memory or on disk; None without room."""
        shape = self._shape(offsets)
        if self.store and (
            room := self.store.place(samples.rows, boundary, shape, self.dtype, _digest(below))
        ):
            return _Entry(boundary, offsets, room[0], "store", room[1], below=below)
        size = self._bytes(offsets)
        if self._held["memory"] + size <= self.memory:
            with suppress(torch.OutOfMemoryError):  # a GPU can have less memory than the budget
                values = torch.empty(shape, dtype=self.dtype, device=self.backbone.device)
                return _Entry(boundary, offsets, values, below=below)
        if self._held["disk"] + size > self.disk:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{samples.owner.replace('/', '-')}.{dtype_name(self.dtype)}"
        try:
            values = allocated(path, shape, self.dtype)
            return _Entry(boundary, offsets, values, "disk", path, below=below)
        except (OSError, RuntimeError):  # the disk is full, or the file cannot be mapped
            return None

    def _shape(self, offsets: np.ndarray) -> tuple[int, int]:
        return int(offsets[-1]), self.backbone.width

    def _bytes(self, offsets: np.ndarray) -> int:
        return math.prod(self._shape(offsets)) * self.dtype.itemsize

    def _states(self, entry: _Entry) -> Tensor:
        """An entry's values; those on disk are mapped for this call."""
        if entry.values is not None:
            return entry.values
        assert entry.path is not None
        return mapped(entry.path, self._shape(entry.offsets), self.dtype)

    def _keep(self, owner: str, entry: _Entry) -> None:
        self._entries[owner] = entry
        self._held[entry.place] += self._bytes(entry.offsets)
        if entry.place == "store":
            finished = [each for each, at in self._entries.items() if at.place == "store" and not at.path]
            for each in finished[:-MAPPED_AT_ONCE]:
                self._drop(each)

    def _refuse(self, owner: str) -> None:
        """Never keep this owner's states.

        They need the same room at every boundary, and no other owner gives its room back.
        """
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
        if entry is None:
            return
        self._held[entry.place] -= self._bytes(entry.offsets)
        if entry.path is not None:
            entry.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._entries.clear()
        self._held.clear()
        self._without_room.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _digest(below: Below | None) -> str:
    return below.digest if below else ""
