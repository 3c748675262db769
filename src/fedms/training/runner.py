"""Running experts over samples, from the frozen prefix up, and counting the operations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedms.data.federated import Samples
from fedms.model import flops
from fedms.model.backbone import Backbone
from fedms.model.expert import Expert
from fedms.model.lora import Pair
from fedms.model.packing import chunks
from fedms.model.statistics import normalise
from fedms.training.inputs import batches
from fedms.training.prefix_cache import PrefixCache

EVALUATION_BATCH = 64
HELD_PER_OWNER = 8
"""Experts whose features for one owner's samples are kept: the backbone, the global expert, the candidates of
an interpolation."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of an expert for some samples, in their order."""

    features: Tensor
    """Normalised pooled features, [n, d]"""
    logits: Tensor | None
    """[n, C]; None without a head"""


@dataclass(frozen=True)
class _Held:
    features: Tensor
    """[n, d]"""
    spent: int
    """Operations that they took, kept prefixes apart"""
    used: dict[str, tuple[str, int]]
    """The kept prefixes that they stand on, as in `Runner.once`."""

    @property
    def bytes(self) -> int:
        return self.features.numel() * self.features.element_size()


@dataclass
class Cost:
    """The cost of a task so far, in floating-point operations."""

    spent: int = 0
    """All operations but those of prefixes"""
    prefixes: int = 0
    """Operations of prefixes"""
    kept: int = 0
    """Operations of prefixes that the cache kept"""
    used: dict[str, tuple[str, int]] = field(default_factory=dict)
    """See `Runner.once`"""


class Runner:
    """The backbone of this process with its prefix cache.

    `boundary` is the lowest active block; all blocks below it are frozen, and their outputs are cached.
    Features are kept within `budget` bytes, by the expert's body: one with another head alone has the same.
    The least recently used go first, and are computed again when they are needed.
    """

    def __init__(self, backbone: Backbone, cache: PrefixCache, budget: int = 0) -> None:
        self.backbone = backbone
        self.cache = cache
        self.budget = budget
        self._spent = 0
        self._held: dict[str, dict[str, _Held]] = {}
        self._held_bytes = 0

    def begin(self) -> None:
        """Start to count the cost of a new task."""
        self.resume(Cost())

    def pause(self) -> Cost:
        """The cost of the task so far, to be given to `resume` after another task."""
        return Cost(self._spent, self.cache.flops, self.cache.kept_flops, self.cache.used)

    def resume(self, cost: Cost) -> None:
        """Continue to count the cost of a task."""
        self._spent, self.cache.flops, self.cache.kept_flops, self.cache.used = (
            cost.spent,
            cost.prefixes,
            cost.kept,
            cost.used,
        )

    @property
    def flops(self) -> int:
        """Operations of this task: forward and backward passes, and prefixes that were not kept."""
        return self._spent + self.cache.flops - self.cache.kept_flops

    @property
    def once(self) -> dict[str, tuple[str, int]]:
        """The values that this task used and that are computed once and kept: name to (version, operations).

        An entry is the same whether the value was computed in this task, before it, or again after a
        resumption.
        """
        return dict(self.cache.used)

    def feature(
        self,
        expert: Expert | None,
        samples: Samples,
        boundary: int,
        picks: np.ndarray,
        trained: list[int] | None = None,
    ) -> Tensor:
        """Pooled features of the samples at `picks`, [len(picks), d].

        `trained` are the blocks to which a loss will be propagated back.
        """
        hidden, lengths = self.cache.hidden(
            samples, boundary, picks, expert.below(boundary) if expert else None
        )
        pairs = expert.pairs(picks, boundary) if expert else {}
        prompt = expert.prompt if expert else None
        self.backbone.attach(pairs)
        if prompt is not None:
            hidden, longer = _before(prompt, hidden, lengths)
        self.book(pairs, hidden.shape[0], hidden.shape[1], boundary, trained)
        if prompt is None:
            return self.backbone.pool(self.backbone.run(hidden, lengths, boundary), lengths)
        return self.backbone.pool(self.backbone.run(hidden, longer, boundary)[:, len(prompt) :], lengths)

    def states(
        self,
        expert: Expert | None,
        samples: Samples,
        boundary: int,
        picks: np.ndarray,
        trained: list[int] | None = None,
    ) -> Tensor:
        """What the pretrained model gives for each token of the samples at `picks`, [n, tokens, d]."""
        below = expert.below(boundary) if expert else None
        hidden, padding = self.cache.hidden(samples, boundary, picks, below)
        pairs = expert.pairs(picks, boundary) if expert else {}
        self.backbone.attach(pairs)
        self.book(pairs, hidden.shape[0], hidden.shape[1], boundary, trained)
        return self.backbone.end(self.backbone.run(hidden, padding, boundary))

    def book_words(self, tokens: int, trains: bool) -> None:
        """Add the operations of the vocabulary's matrix, forward and, in training, backward."""
        self._spent += (2 if trains else 1) * 2 * tokens * self.backbone.vocabulary.numel()

    def _packed_feature(
        self, expert: Expert | None, samples: Samples, boundary: int, picks: np.ndarray
    ) -> Tensor:
        """As `feature`, by a packed batch, for an expert that `packs`."""
        below = expert.below(boundary) if expert else None
        hidden, packing = self.cache.packed(samples, boundary, picks, below)
        pairs = expert.pairs(start=boundary) if expert else {}
        self.backbone.attach(pairs)
        for count, tokens in packing.shapes:
            self.book(pairs, count, tokens, boundary, None)
        return self.backbone.pool(self.backbone.run(hidden, packing, boundary), packing)

    def book(
        self,
        pairs: Mapping[tuple[int, str], Pair],
        count: int,
        tokens: int,
        boundary: int,
        trained: list[int] | None,
    ) -> None:
        """Add the operations of `count` samples of `tokens` tokens each, with these pairs."""
        self._spent += flops.forward(self.backbone, count, tokens, boundary)
        rank = 0
        if pairs:
            first = next(iter(pairs.values()))
            rank = first.A.shape[-2] + (first.beside[0].shape[-2] if first.beside else 0)
            self._spent += flops.pairs(self.backbone, count, tokens, rank, {block for block, _ in pairs})
            kept = [key for key, pair in pairs.items() if pair.residual is not None]
            self._spent += flops.residuals(self.backbone, count, tokens, kept) * (2 if trained else 1)
        self._spent += flops.backward(self.backbone, count, tokens, rank, trained or [])

    def outputs(
        self, expert: Expert | None, samples: Samples, boundary: int, head_alone: bool = False
    ) -> Outputs:
        """Features and logits of all samples, on the CPU; without an expert, only the backbone's features.

        Args:
            head_alone: whether the expert differs from the frozen global one in its head alone. Then it has
                the global one's features, which are kept.
        """
        if head_alone:
            return self.frozen_outputs("global", expert, samples, boundary)
        if expert is not None and expert.weight is not None:  # no digest covers the weights of samples
            return self._outputs(expert, self._features(expert, samples, boundary))
        _, held = self._kept(expert, samples, boundary)
        self._spent += held.spent  # whether this process held them or not
        return self._outputs(expert, held.features)

    @torch.no_grad()
    def _features(self, expert: Expert | None, samples: Samples, boundary: int) -> Tensor:
        """Normalised pooled features of all samples, [n, d], on the CPU."""
        expert = expert.to(self.backbone.device) if expert else None
        features = torch.empty(len(samples), self.backbone.feature_size)
        lengths = self.cache.inputs.lengths(samples.rows)
        packs = self.backbone.packs and (expert is None or expert.packs)
        feature = self._packed_feature if packs else self.feature
        parts = chunks(lengths) if packs else batches(lengths, EVALUATION_BATCH)
        if parts:  # one copy from the GPU, not one for each batch
            features[np.concatenate(parts)] = torch.cat(
                [feature(expert, samples, boundary, picks) for picks in parts]
            ).cpu()
        return normalise(features)

    @torch.no_grad()
    def _outputs(self, expert: Expert | None, features: Tensor) -> Outputs:
        return Outputs(features, expert.to(torch.device("cpu")).logits(features) if expert else None)

    def frozen_outputs(self, role: str, expert: Expert | None, samples: Samples, boundary: int) -> Outputs:
        """As `outputs`, but features cost nothing until the role's expert changes its body, or the boundary
        changes.

        For experts that stay frozen over many rounds.
        """
        return self._outputs(expert, self.frozen_features(role, expert, samples, boundary))

    def frozen_features(
        self,
        role: str,
        expert: Expert | None,
        samples: Samples,
        boundary: int,
        compute: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """The features behind `frozen_outputs`, or what `compute` gives in their place."""
        key, held = self._kept(expert, samples, boundary, compute)
        self.cache.used[f"{role} {samples.owner}"] = key, held.spent
        return held.features

    def _kept(
        self,
        expert: Expert | None,
        samples: Samples,
        boundary: int,
        compute: Callable[[], Tensor] | None = None,
    ) -> tuple[str, _Held]:
        """The features, and what they are named by. Their cost is for the caller to book."""
        key = f"{boundary} {_digest(expert)}"
        held = self._held.get(samples.owner, {}).get(key)
        if held is None:
            before, self.cache.used, earlier = self.flops, {}, self.cache.used
            features = compute() if compute else self._features(expert, samples, boundary)
            spent = self.flops - before
            self._spent -= spent
            held = _Held(features, spent, self.cache.used)
            self.cache.used = earlier
        self._hold(samples.owner, key, held)
        self.cache.used |= held.used
        return key, held

    def _hold(self, owner: str, key: str, held: _Held) -> None:
        """Keep the features, as the most recently used."""
        mine = self._held.pop(owner, {})
        self._held[owner] = mine
        if mine.pop(key, None) is None:
            self._held_bytes += held.bytes
        mine[key] = held
        if len(mine) > HELD_PER_OWNER:
            self._held_bytes -= mine.pop(next(iter(mine))).bytes
        while self._held_bytes > self.budget and len(self._held) > 1:
            gone = self._held.pop(next(iter(self._held)))
            self._held_bytes -= sum(each.bytes for each in gone.values())


def _before(prompt: Tensor, hidden: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Hidden states with a soft prompt [m, d] before every sample's tokens, and the lengths of both."""
    count = hidden.shape[0]
    hidden = torch.cat([prompt.to(hidden.dtype).expand(count, -1, -1), hidden], dim=1)
    return hidden, None if lengths is None else lengths + len(prompt)


def _digest(expert: Expert | None) -> str:
    """Of all that decides an expert's features."""
    sha = hashlib.sha256()
    for name, array in sorted(expert.body.items() if expert else []):
        sha.update(name.encode())
        sha.update(array.detach().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]
