"""Partitions: every sample of a data set goes to one client's train, validation or test split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedms.config.sections import PARTITION_RULES, PartitionConfig
from fedms.core import seeds
from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt
from fedms.core.paths import is_name
from fedms.data.partition_rules import bincount, by_shares, test_sizes, too_few
from fedms.data.sources import Dataset

Rule = Callable[[Dataset, PartitionConfig, int], tuple[list[str], np.ndarray]]
"""From data set, config and seed to the clients' names [K] and each row's client, int64 [n] (places in the
names). Where the source has a test split (`Dataset.is_test`), its rows are dealt out, too."""

RULES: dict[str, Rule] = dict.fromkeys(("dirichlet", "classes", "column", "equal"), by_shares)
"""The rules that `partition.rule` can name; `register_partition` adds one."""


def register_partition(name: str, function: Rule) -> None:
    """Let `partition.rule: NAME` divide the data by a function of your own.

    fedms cuts each client's validation and test split, and checks what the rule returns: `partition.clients`
    names that can be folders, one client for each row, and at least `partition.min_samples` samples for each
    client.

    Raises:
        ConfigError: the name belongs to another rule.
    """
    if RULES.get(name) is not function:
        PARTITION_RULES.add(name)
        RULES[name] = function


@dataclass(frozen=True)
class ClientSplit:
    """One client's samples: sorted int64 indices into the `Dataset`."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Partition:
    """All clients, in the order that the rule gives."""

    clients: tuple[ClientSplit, ...]

    def counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """Training and validation samples of each class at every client: int64 [clients, classes]."""
        rows = [np.concatenate([client.train, client.validation]) for client in self.clients]
        owner = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        return bincount(owner * classes + labels[np.concatenate(rows)], len(rows) * classes).reshape(
            len(rows), classes
        )


def partition(dataset: Dataset, config: PartitionConfig, seed: int) -> Partition:
    """Give every sample to one client by the rule of the config, and cut each client's splits.

    Raises:
        ConfigError: no such rule, or the numbers of clients, values and classes do not fit together.
        FedmsError: a column does not exist, or a client stays below the minimum.
    """
    PARTITION_RULES.check(config.rule)
    names, owner = RULES[config.rule](dataset, config, seed)
    _check(names, owner, dataset, config)
    labels, test, clients = dataset.labels, dataset.is_test, len(names)
    tested = np.zeros(len(labels), dtype=bool) if test is None else test
    if test is None:
        sizes = test_sizes(bincount(owner, clients), config.test)
        tested = _cut(owner, labels, sizes, seeds.numpy_generator(seed, "partition", "test"))
    rest = np.flatnonzero(~tested)
    own, tests = bincount(owner[rest], clients), bincount(owner[tested], clients)
    for i in np.flatnonzero((own < config.min_samples) | (tests < 1))[:1]:
        raise too_few(names[i], own[i], tests[i], test, config, "")
    sizes = np.maximum(1, np.rint(own * config.validation).astype(np.int64))
    validated = np.zeros(len(labels), dtype=bool)
    validated[rest] = _cut(
        owner[rest], labels[rest], sizes, seeds.numpy_generator(seed, "partition", "validation")
    )

    splits = (_by_client(owner, mask, clients) for mask in (~tested & ~validated, validated, tested))
    return Partition(tuple(map(ClientSplit, names, *splits)))


def _check(names: list[str], owner: np.ndarray, dataset: Dataset, config: PartitionConfig) -> None:
    """Raise FedmsError unless the rule returned what it must."""
    rule, rows = f"partition.rule {excerpt(config.rule)}", len(dataset.labels)
    if len(names) != config.clients:
        raise FedmsError(f"{rule}: made {len(names)} clients, but partition.clients is {config.clients}")
    if bad := [name for name in names if not is_name(name)]:
        raise FedmsError(f"{rule}: {excerpt(repr(bad[0]))} cannot name a client's folder")
    if len({name.casefold() for name in names}) < len(names):
        raise FedmsError(f"{rule}: two clients have one name")
    if owner.shape != (rows,) or owner.dtype != np.int64 or not ((owner >= 0) & (owner < len(names))).all():
        raise FedmsError(
            f"{rule}: must give each of the {rows} rows one client: int64 from 0 to {len(names) - 1}"
        )


def _cut(
    owner: np.ndarray, labels: np.ndarray, sizes: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Choose `sizes[client]` of every client's rows, stratified by class: bool [n].

    Systematic sampling: a client's rows sorted by class (shuffled inside one), every (n / size)-th taken
    from a random start. So each class has its share to within one sample, and rare classes are together
    represented as they should be.
    """
    held = bincount(owner, len(sizes))
    order = np.lexsort((generator.random(len(owner)), labels, owner))
    client = owner[order]
    position = np.arange(len(owner)) - (np.cumsum(held) - held)[client]
    start = generator.integers(0, held)[client]
    reached = position * sizes[client] + start
    chosen = np.zeros(len(owner), dtype=bool)
    chosen[order] = (reached + sizes[client]) // held[client] > reached // held[client]
    return chosen


def _by_client(owner: np.ndarray, mask: np.ndarray, clients: int) -> list[np.ndarray]:
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(owner[rows], kind="stable")]
    return np.split(rows, np.cumsum(bincount(owner[rows], clients))[:-1])
