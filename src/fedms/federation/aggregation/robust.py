"""Means that a few lying clients cannot move far. Pure functions, as in `mean`.

    median, trimmed-mean   Yin et al., Byzantine-Robust Distributed Learning, arXiv 1803.01498
    multi-krum             Blanchard et al., Machine Learning with Adversaries, arXiv 1703.02757
    norm-clip              Sun et al., Can You Really Backdoor Federated Learning?, arXiv 1911.07963

Each array is aggregated over the clients that trained it. Median and trimmed mean count every client alike:
a client reports its number of samples itself, so a weight would give a liar influence. Krum selects updates
without weights and averages the selected ones by their samples. Norm-clip shortens long updates and averages
all of them by their samples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedms.config import Config
from fedms.federation.aggregation.aggregator import Aggregator
from fedms.federation.aggregation.mean import average, ordered
from fedms.federation.messages import Update


def median(shared: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
    """The middle value of each number; the mean of the middle two where their count is even."""
    return _by_number(shared, updates, lambda count: (count - 1) // 2)


def trimmed_mean(shared: Mapping[str, Tensor], updates: Sequence[Update], liars: float) -> dict[str, Tensor]:
    """The mean of each number without the `supposed` number of values at each end."""
    return _by_number(shared, updates, lambda count: min(supposed(liars, count), (count - 1) // 2))


def multi_krum(shared: Mapping[str, Tensor], updates: Sequence[Update], liars: float) -> dict[str, Tensor]:
    """The weighted mean of the n - f updates closest to their n - f - 2 nearest; f clients may lie.

    Krum requires n >= 2 f + 3, so f is smaller in a small round. With fewer than three updates, f is 0.
    """
    return _by_group(shared, updates, lambda group: _closest(group, liars))


def norm_clip(shared: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
    """The weighted mean of the updates, with each step from the shared state cut to the median length."""
    return _by_group(shared, updates, lambda group: _clipped(shared, group))


def supposed(liars: float, count: int) -> int:
    """The number of clients that may lie, of `count`: the share `liars`, rounded up."""
    return math.ceil(liars * count - 1e-9)


def _by_number(
    shared: Mapping[str, Tensor], updates: Sequence[Update], trimmed: Callable[[int], int]
) -> dict[str, Tensor]:
    """The mean of each number's values, without `trimmed(count)` of them at each end."""
    new = dict(shared)
    for name in sorted({name for update in updates for name in update.arrays}):
        values = torch.stack([update.arrays[name] for update in ordered(updates) if name in update.arrays])
        away = trimmed(len(values))
        kept = values.double().sort(dim=0).values[away : len(values) - away]
        new[name] = kept.mean(0).to(values.dtype)
    return new


def _by_group(
    shared: Mapping[str, Tensor], updates: Sequence[Update], treated: Callable[[list[Update]], list[Update]]
) -> dict[str, Tensor]:
    """The weighted mean of treated updates.

    Arrays that the same clients trained are treated as one vector. Where all clients train the same arrays,
    this vector is the whole update.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in sorted({name for update in updates for name in update.arrays}):
        groups[tuple(update.client for update in ordered(updates) if name in update.arrays)].append(name)
    new = dict(shared)
    for clients, names in groups.items():
        group = [
            replace(update, arrays={name: update.arrays[name] for name in names})
            for update in ordered(updates)
            if update.client in clients
        ]
        new = average(new, treated(group))
    return new


def _closest(group: list[Update], liars: float) -> list[Update]:
    count = len(group)
    f = min(supposed(liars, count), max(0, (count - 3) // 2))
    if f == 0:
        return group
    vectors = torch.stack([_vector(update.arrays) for update in group])
    distances = torch.stack([(vectors - vector).square().sum(1) for vector in vectors]).sort(dim=1).values
    scores = distances[:, 1 : count - f - 1].sum(1)  # column 0 is the distance to itself
    chosen = scores.argsort(stable=True)[: count - f].tolist()
    return [group[index] for index in sorted(chosen)]


def _clipped(shared: Mapping[str, Tensor], group: list[Update]) -> list[Update]:
    start = {
        name: shared[name] if name in shared else torch.zeros_like(array)
        for name, array in group[0].arrays.items()
    }
    lengths = [float((_vector(update.arrays) - _vector(start)).norm()) for update in group]
    most = float(torch.tensor(lengths, dtype=torch.float64).quantile(0.5))
    return [
        update if length <= most else replace(update, arrays=_shortened(start, update.arrays, most / length))
        for update, length in zip(group, lengths, strict=True)
    ]


def _shortened(start: Mapping[str, Tensor], arrays: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    return {
        name: torch.lerp(start[name].double(), array.double(), share).to(array.dtype)
        for name, array in arrays.items()
    }


def _vector(arrays: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([arrays[name].double().flatten() for name in sorted(arrays)])


def _declared(
    name: str, rule: Callable[[Mapping[str, Tensor], Sequence[Update], float], dict[str, Tensor]]
) -> Aggregator:
    """The declaration of a rule that may use the share of liars."""

    def combine(shared: Mapping[str, Tensor], updates: Sequence[Update], config: Config) -> dict[str, Tensor]:
        return rule(shared, updates, config.federation.liars)

    return Aggregator(name, combine, robust=True)


AGGREGATORS = (
    _declared("median", lambda shared, updates, liars: median(shared, updates)),
    _declared("trimmed-mean", trimmed_mean),
    _declared("multi-krum", multi_krum),
    _declared("norm-clip", lambda shared, updates, liars: norm_clip(shared, updates)),
)
