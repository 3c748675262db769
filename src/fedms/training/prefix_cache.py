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
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedms.data.federated import Samples
from fedms.model import flops
from fedms.model.arrays import moved
from fedms.model.backbone import Backbone, Lengths, ragged
from fedms.model.lora import Below
from fedms.model.packing import Packing, chunks, shapes
from fedms.training.inputs import Inputs, batches
from fedms.training.prefix_places import Entry, Places, digest
from fedms.training.prefix_store import PrefixStore

FILL_BATCH = 64
MAPPED_AT_ONCE = 64
"""Files of a store that a process holds mapped. It finds others again when it needs them."""

log = logging.getLogger(__name__)


class PrefixCache:
    """Hidden states at one boundary per owner. With a store, they are shared with other processes and runs.

    A pass also leaves the states at those lower boundaries that `later` names, as far as `memory` has room
    that nothing else needs. So a run that comes to them computes nothing again.

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
        later: Collection[int] = (),
    ) -> None:
        self.backbone = backbone
        self.inputs = inputs
        self.enabled = enabled
        self.dtype = torch.bfloat16 if backbone.dtype == torch.bfloat16 else dtype
        self.places = Places(backbone, self.dtype, memory, disk, folder, store)
        self.later = sorted(later)
        self.flops = 0
        self.kept_flops = 0
        self.used: dict[str, tuple[str, int]] = {}
        self._entries: dict[str, Entry] = {}
        self._left: dict[str, dict[int, Entry]] = {}
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
            hidden, lengths = self._embedded(samples.rows[picks], packed)
            hidden = self._run(hidden, lengths, 0, boundary, below)
            return hidden.to(self.dtype).to(self.backbone.dtype), lengths  # rounded as if it had been kept
        self.used[samples.owner] = f"{boundary} {digest(below)}".rstrip(), entry.flops
        return self._gathered(entry, picks, packed)

    def _gathered(self, entry: Entry, picks: np.ndarray, packed: bool) -> tuple[Tensor, Lengths]:
        starts, ends, device = entry.offsets[picks], entry.offsets[picks + 1], self.backbone.device
        if packed:
            tokens = torch.from_numpy(np.concatenate([*map(np.arange, starts, ends)]))
            return self.places.states(entry)[tokens][None].to(self.backbone.dtype), Packing(ends - starts)
        longest = int((ends - starts).max())
        # padding repeats a sample's last token, which no token sees
        lines = torch.from_numpy(np.minimum(starts[:, None] + np.arange(longest), ends[:, None] - 1))
        states = self.places.states(entry)
        values = states.index_select(0, moved(lines.flatten(), states.device)).view(*lines.shape, -1)
        return moved(values, device).to(self.backbone.dtype), ragged(torch.from_numpy(ends - starts), longest)

    @torch.no_grad()
    def _embedded(self, rows: np.ndarray, packed: bool) -> tuple[Tensor, Lengths]:
        """The input of the first block, and the lengths."""
        inputs, padded = self.inputs.batch(rows)
        lengths: Lengths = padded
        hidden = self.backbone.embed(moved(inputs, self.backbone.device), padded)
        if packed:
            lengths = Packing(self.inputs.lengths(rows))
            hidden = lengths.pack(hidden)
        return hidden, lengths

    @torch.no_grad()
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
            left = self._taken(samples.owner, boundary, below)
            if there := left or self._stored(samples, boundary, offsets, below):
                self._keep(samples.owner, there)
            elif placed := self._placed(samples, boundary, offsets, below):
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
                self._give_up(samples.owner)
            raise

    def _compute_all(self, made: Sequence[tuple[Samples, Entry]], boundary: int, below: Below | None) -> None:
        before, packed = self.flops, self.backbone.packs
        alone = len(made) == 1 and below is None
        lower = self._lower(*made[0]) if alone else None
        start = lower.boundary if lower else 0
        stops = {**(self._leave(*made[0], start) if alone else {}), boundary: [entry for _, entry in made]}
        places = {stop: self._lines(entries) for stop, entries in stops.items()}
        rows = np.concatenate([samples.rows for samples, _ in made])
        lengths = np.concatenate([np.diff(entry.offsets) for _, entry in made])
        for picks in self._batches(lengths):
            if lower:  # the bits are those of one pass, since padding has no effect on real tokens
                hidden, shape = self._gathered(lower, picks, packed)
            else:
                hidden, shape = self._embedded(rows[picks], packed)
            for at, stop in itertools.pairwise([start, *stops]):
                hidden = self._run(hidden, shape, at, stop, below)
                kept = hidden.to(places[stop][0][0].device)
                lines = torch.split(kept[0], lengths[picks].tolist()) if packed else kept
                for line, (values, first, end) in zip(
                    lines, (places[stop][pick] for pick in picks), strict=True
                ):
                    values[first:end] = line[: end - first]
        self.kept_flops += self.flops - before
        for entry in itertools.chain(*stops.values()):
            self._finish(entry, below)
        self._pass_on([samples.owner for samples, _ in made])

    def _lines(self, entries: Sequence[Entry]) -> list[tuple[Tensor, int, int]]:
        """For each sample in turn: the states that hold it, and its first and last line there."""
        return [
            (self.places.states(entry), first, end)
            for entry in entries
            for first, end in itertools.pairwise(entry.offsets)
        ]

    def _finish(self, entry: Entry, below: Below | None) -> None:
        entry.flops = self._takes(np.diff(entry.offsets), entry.boundary, below)
        self.places.finish(entry)

    def _placed(
        self, samples: Samples, boundary: int, offsets: np.ndarray, below: Below | None
    ) -> Entry | None:
        """An entry for values to be computed. States that are only for later make room for it."""
        while self._left and not self.places.has_memory(offsets):
            self._give_up(next(iter(self._left)))
        return self.places.place(samples, boundary, offsets, below)

    # lower boundaries

    def _leave(self, samples: Samples, made: Entry, start: int) -> dict[int, list[Entry]]:
        """Places for the states at later boundaries between `start` and the one that is made, ascending."""
        found = {}
        left = self._left.setdefault(samples.owner, {})
        for boundary in (each for each in self.later if start < each < made.boundary and each not in left):
            if self.places.stored(samples, boundary, made.offsets, None):
                continue
            if (entry := self.places.spare(samples, boundary, made.offsets)) is None:
                break
            left[boundary] = entry
            found[boundary] = [entry]
        return found

    def _pass_on(self, owners: Sequence[str]) -> None:
        """Leave to the store what was placed there: it is found again like anything else."""
        for owner in owners:
            left = self._left.get(owner, {})
            for boundary in [each for each, entry in left.items() if entry.place == "store"]:
                self.places.release(left.pop(boundary))

    def _taken(self, owner: str, boundary: int, below: Below | None) -> Entry | None:
        """What a pass has left here in memory at this boundary. What it has left above goes."""
        found = None
        left = self._left.get(owner, {}) if below is None else {}
        for each in [each for each in left if each >= boundary]:
            entry = left.pop(each)
            self.places.release(entry)
            found = entry if each == boundary else found
        return found

    def _give_up(self, owner: str) -> None:
        """Keep no states at lower boundaries of this owner."""
        for entry in self._left.pop(owner, {}).values():
            self.places.release(entry)

    def _lower(self, samples: Samples, made: Entry) -> Entry | None:
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
    ) -> Entry | None:
        """The store's states at this boundary, or None."""
        entry = self.places.stored(samples, boundary, offsets, below)
        if entry is not None:
            entry.flops = self._takes(np.diff(offsets), boundary, below)
        return entry

    @torch.no_grad()
    def _lengths(self, rows: np.ndarray) -> np.ndarray:
        """Number of tokens to keep of each sample, [n]; no block needs to run for it."""
        if self.backbone.kind == "text":
            return self.inputs.lengths(rows)
        if self._image_tokens is None:  # the same for all images
            pixels, _ = self.inputs.batch(rows[:1])
            self._image_tokens = self.backbone.embed(pixels.to(self.backbone.device)).shape[1]
        return np.full(len(rows), self._image_tokens, dtype=np.int64)

    def _keep(self, owner: str, entry: Entry) -> None:
        self._entries[owner] = entry
        self.places.hold(entry)
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
                self.places.memory >> 20,
                self.places.disk >> 20,
            )
        self._without_room.add(owner)

    def _drop(self, owner: str) -> None:
        entry = self._entries.pop(owner, None)
        if entry is None:
            return
        self.places.release(entry)

    def close(self) -> None:
        self._entries.clear()
        self._left.clear()
        self._without_room.clear()
        self.places.clear()
