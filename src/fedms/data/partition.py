"""Partitions: every sample of a data set goes to one client's train, validation or test split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedms.config.data import PARTITION_RULES, PartitionConfig
from fedms.core import seeds
from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt
from fedms.core.paths import is_name
from fedms.data.partition_rules import bincount, by_files, by_shares, holdout_sizes, too_few
from fedms.data.sources import Dataset

Rule = Callable[[Dataset, PartitionConfig, int], tuple[list[str], np.ndarray]]
"""From data set, config and seed to the clients' names [K] and each row's client, int64 [n] (places in the
names). Where the source has a test split (`Dataset.is_test`), its rows are dealt out, too."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(("dirichlet", "classes", "column", "equal"), by_shares),
    "files": by_files,
}
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
    owner = _checked(names, np.asarray(owner), dataset, config)
    splits, clients = _splits(names, owner, dataset, config, seed), len(names)
    rows = (_by_client(owner, mask, clients) for mask in splits)
    return Partition(tuple(map(ClientSplit, names, *rows)))


def _splits(
    names: list[str], owner: np.ndarray, dataset: Dataset, config: PartitionConfig, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train, validation and test samples, each bool [n]. What a client's source does not give is drawn.

    A test split that a rule deals out must reach all clients. Only files can give one to some clients alone.
    """
    labels, clients = dataset.labels, len(names)
    none = np.zeros(len(labels), dtype=bool)
    tested = none if dataset.is_test is None else dataset.is_test
    validated = none if dataset.is_validation is None else dataset.is_validation
    trained = ~tested & ~validated
    left, tests, validations = (bincount(owner[mask], clients) for mask in (trained, tested, validated))
    dealt_out = dataset.is_test is not None and dataset.owner is None
    to_test = np.where(dealt_out | (tests > 0), 0, holdout_sizes(left, config.test))
    own = left - to_test + validations
    to_validate = np.where(validations > 0, 0, np.maximum(1, np.rint(own * config.validation))).astype(int)
    few = (own < config.min_samples) | (tests + to_test < 1) | (left <= to_test)
    for i in np.flatnonzero(few)[:1]:
        raise too_few(names[i], (left + validations)[i], tests[i], not to_test[i], config, "")

    def drawn(sizes: np.ndarray, purpose: str) -> np.ndarray:
        rows, chosen = np.flatnonzero(trained), none.copy()
        if dataset.owner is None:
            generator = seeds.numpy_generator(seed, "partition", purpose)
            chosen[rows] = _cut(owner[rows], labels[rows], sizes, generator)
            return chosen
        for i, own in enumerate(_by_client(owner, trained, clients)):  # as a site that has no other file
            generator = seeds.numpy_generator(seed, "partition", purpose, names[i])
            chosen[own] = _cut(np.zeros_like(own), labels[own], sizes[i : i + 1], generator)
        return chosen

    tested = tested | drawn(to_test, "test")
    trained = trained & ~tested
    validated = validated | drawn(to_validate, "validation")
    return trained & ~validated, validated, tested


def _checked(names: list[str], owner: np.ndarray, dataset: Dataset, config: PartitionConfig) -> np.ndarray:
    """Each row's client as int64; FedmsError where a rule returned something else than it must."""
    rule, rows = f"partition.rule {excerpt(config.rule)}", len(dataset.labels)
    if config.clients not in (None, len(names)):
        raise FedmsError(f"{rule}: made {len(names)} clients, but partition.clients is {config.clients}")
    if bad := [name for name in names if not is_name(name)]:
        raise FedmsError(f"{rule}: {excerpt(repr(bad[0]))} cannot name a client's folder")
    if len({name.casefold() for name in names}) < len(names):
        raise FedmsError(f"{rule}: two clients have one name")
    whole = owner.shape == (rows,) and np.issubdtype(owner.dtype, np.integer)
    if not whole or not ((owner >= 0) & (owner < len(names))).all():
        raise FedmsError(
            f"{rule}: must give each of the {rows} rows one client, a whole number from 0 to {len(names) - 1}"
        )
    return owner.astype(np.int64)


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
    start = generator.integers(0, np.maximum(held, 1))[client]
    reached = position * sizes[client] + start
    chosen = np.zeros(len(owner), dtype=bool)
    chosen[order] = (reached + sizes[client]) // held[client] > reached // held[client]
    return chosen


def _by_client(owner: np.ndarray, mask: np.ndarray, clients: int) -> list[np.ndarray]:
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(owner[rows], kind="stable")]
    return np.split(rows, np.cumsum(bincount(owner[rows], clients))[:-1])
