"""The rules of fedms itself: each client gets a share of every class, drawn or fixed.

One matrix of shares [client, class] divides the training rows and the test rows alike, so that a client's
splits have one distribution. Arrays are [group, member, class]: a group is one value of `partition.column`
(the other rules have one group), and its members are its clients.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np

from fedms.config.data import PartitionConfig
from fedms.core import seeds
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.formatting import plural
from fedms.data.sources import Dataset

ATTEMPTS = 200
"""Draws of the shares before the rule gives up."""


def by_shares(dataset: Dataset, config: PartitionConfig, seed: int) -> tuple[list[str], np.ndarray]:
    """Divide every class over the clients by shares.

    `dirichlet`: Dirichlet(alpha) shares of each class (Hsu, Qi & Brown 2019, arXiv:1909.06335). `classes`:
    each client gets shards of `classes_per_client` classes (McMahan et al. 2017, arXiv:1602.05629).
    `column`: each value of the column has its own clients, with Dirichlet(alpha) shares among them or equal
    shares. `equal`: the same share of every class for all.

    A client below `min_samples`, or without a test sample, has its shares drawn again. A Dirichlet draw is
    independent gammas divided by their sum, so the other clients keep theirs.

    Returns:
        The clients' names, and each row's client, int64 [n].

    Raises:
        ConfigError: the numbers of clients, values and classes do not fit together.
        FedmsError: the column does not exist, or a client stays below the minimum.
    """
    labels, classes = dataset.labels, len(dataset.class_names)
    assert config.clients is not None, "only rule `files` leaves the number to the source"
    values, group = _groups(dataset, config, config.clients)
    groups, members = max(len(values), 1), config.clients // max(len(values), 1)
    names = _names(values, members)
    test = dataset.is_test
    training = np.arange(len(labels)) if test is None else np.flatnonzero(~test)
    stratum = group * classes + labels
    totals = bincount(stratum[training], groups * classes).reshape(groups, classes)
    test_totals = None if test is None else bincount(stratum[test], groups * classes).reshape(groups, classes)
    own, tests = totals.sum(1), (totals if test_totals is None else test_totals).sum(1)
    for i in np.flatnonzero((own < members * config.min_samples) | (tests < members))[:1]:
        column = f" of {config.column} {values[i]!r}" if values else ""
        who = f"the {members} clients{column} together"
        raise too_few(who, own[i], tests[i], test is not None, config, "")

    counts, test_counts = _draw(totals, test_totals, members, config, seed, names, dataset.class_names)
    owner = np.empty(len(labels), dtype=np.int64)
    owner[training] = _deal(
        stratum[training], counts, seeds.numpy_generator(seed, "partition", "rows", "train")
    )
    if test_counts is not None:
        generator = seeds.numpy_generator(seed, "partition", "rows", "test")
        owner[test] = _deal(stratum[test], test_counts, generator)
    return names, owner


def by_files(dataset: Dataset, config: PartitionConfig, seed: int) -> tuple[list[str], np.ndarray]:
    """Each client has the samples of its own file or folder: `fedms.data.clients`.

    Returns:
        The clients' names, and each row's client, int64 [n].

    Raises:
        ConfigError: `partition.clients` is another number than the source has clients.
        FedmsError: the data set was not read client by client.
    """
    if dataset.owner is None:
        raise FedmsError("partition.rule files: the data set does not say whose its samples are")
    held = len(dataset.clients)
    if config.clients not in (None, held):
        raise ConfigError(
            f"partition.clients: {config.clients}, but data.source holds {plural(held, 'client')}; "
            "with rule `files` the key can be left out"
        )
    return list(dataset.clients), dataset.owner


# --- groups and names ---------------------------------------------------------------------------------------


def _groups(dataset: Dataset, config: PartitionConfig, clients: int) -> tuple[list[str], np.ndarray]:
    """The column's values (none for the other rules) and each row's index into them, int64 [n]."""
    if config.rule != "column":
        return [], np.zeros(len(dataset.labels), dtype=np.int64)
    column = dataset.columns.get(config.column or "")
    if column is None:
        raise FedmsError(
            f"partition.column: no column {config.column!r} in the data; "
            f"columns: {', '.join(dataset.columns) or 'none'}"
        )
    if (column == "").any():
        sample = int(np.argmax(column == "")) + 1
        raise FedmsError(f"partition.column: sample {sample} has no value in column {config.column!r}")
    values, group = np.unique(column, return_inverse=True)
    if clients % len(values):
        raise ConfigError(
            f"partition.clients: {clients} must be a multiple of {len(values)}, "
            f"the number of values in column {config.column!r}"
        )
    return [str(value) for value in values], group.astype(np.int64)


def _names(values: list[str], members: int) -> list[str]:
    width = len(str(members - 1))
    taken: dict[str, None] = {}
    for i, value in enumerate(values):
        ascii_only = unicodedata.normalize("NFKD", value.casefold()).encode("ascii", "ignore").decode()
        slug = base = re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")[:60] or "value"
        while slug in taken:  # "A b" and "a-b" are two values with one slug
            slug, i = f"{base}-{i}", i + 1
        taken[slug] = None
    return [f"{slug}-{number:0{width}d}" for slug in (taken or ["client"]) for number in range(members)]


# --- shares and counts --------------------------------------------------------------------------------------


def _draw(
    totals: np.ndarray,
    test_totals: np.ndarray | None,
    members: int,
    config: PartitionConfig,
    seed: int,
    names: list[str],
    class_names: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of each class for every client, training and test rows apart: int64 [group, member, class]."""
    groups, classes = totals.shape
    log_shares = np.zeros((groups, members, classes))
    skewed = config.rule == "dirichlet" or (config.rule == "column" and config.alpha is not None)
    again = np.ones((groups, members), dtype=bool)
    for attempt in range(ATTEMPTS if skewed or config.rule == "classes" else 1):
        generator = seeds.numpy_generator(seed, "partition", "shares", attempt)
        if skewed:
            log_shares[again] = _log_gamma(generator, config.alpha or 1.0, (int(again.sum()), classes))
            shares = np.exp(log_shares - log_shares.max(axis=1, keepdims=True))
        elif config.rule == "classes":
            shares = _shards(totals[0], members, config.classes_per_client, generator, class_names)[None]
        else:
            shares = np.ones_like(log_shares)
        counts = allocate(shares, totals, generator, even=not skewed)
        test_counts = None
        if test_totals is None:
            tests = holdout_sizes(counts.sum(2), config.test)
            left = counts.sum(2) - tests
        else:
            # by the counts, not by the shares: no client is tested on a class that it does not train on
            test_counts = allocate(
                np.where(totals[:, None] > 0, counts, shares), test_totals, generator, even=True
            )
            left, tests = counts.sum(2), test_counts.sum(2)
        again = (left < config.min_samples) | (tests < 1)
        if not again.any():
            return counts, test_counts
    worst = int(np.argmax(again))
    raise too_few(
        names[worst],
        counts.sum(2).flat[worst],
        tests.flat[worst],
        test_totals is not None,
        config,
        "a larger partition.alpha, " if skewed else "",
    )


def _log_gamma(generator: np.random.Generator, alpha: float, shape: tuple[int, ...]) -> np.ndarray:
    """Logarithms of Gamma(alpha) draws, as Gamma(alpha + 1) U^(1/alpha): a small alpha does not underflow."""
    return np.log(generator.standard_gamma(alpha + 1, shape)) + np.log1p(-generator.random(shape)) / max(
        alpha, 1e-9
    )


def _shards(
    totals: np.ndarray, clients: int, each: int, generator: np.random.Generator, class_names: tuple[str, ...]
) -> np.ndarray:
    """Which classes every client holds: 0 or 1 [client, class], `each` ones a row, columns nearly even."""
    classes = len(totals)
    if each > classes:
        raise ConfigError(
            f"partition.classes_per_client: {each} is more than the {classes} classes of the data"
        )
    if clients * each < classes:
        raise ConfigError(
            f"partition.classes_per_client: {clients} clients of {each} cannot hold all {classes} classes"
        )
    dealt: list[int] = []
    while len(dealt) < clients * each:
        # One shuffled deck of all classes after another. No client gets one class from two decks.
        hand = set(dealt[len(dealt) - len(dealt) % each :])
        deck = generator.permutation(classes).tolist()
        dealt += [c for c in deck if c not in hand] + [c for c in deck if c in hand]
    holds = np.zeros((clients, classes))
    holds[np.repeat(np.arange(clients), each), dealt[: clients * each]] = 1
    if (short := totals < holds.sum(0)).any():
        c = int(np.argmax(short))
        raise FedmsError(
            f"class {class_names[c]!r} has {totals[c]} training samples for the "
            f"{int(holds[:, c].sum())} clients that should hold it: "
            "use fewer partition.clients or partition.classes_per_client"
        )
    return holds


def allocate(
    shares: np.ndarray, totals: np.ndarray, generator: np.random.Generator, even: bool
) -> np.ndarray:
    """Divide each group's total of each class over its members, in whole numbers by largest remainders.

    Args:
        shares: non-negative [group, member, class], of any sum over the members.
        totals: int64 [group, class].
        even: carry the part that a member lost in rounding to the next class, so that its sum over the
            classes is close to its quota, too. Not for drawn shares: single samples of a class would go to
            clients with hardly any share of it.

    Returns:
        int64 [group, member, class], less than 1 from the exact quota; the sum over members is `totals`.
    """
    due = totals[:, None] * (shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300))
    counts: np.ndarray = np.floor(due + 1e-9)
    left = totals - counts.sum(axis=1)
    ties = 1e-6 * generator.random(due.shape[:2])
    carry = np.zeros(due.shape[:2])
    ranks = np.arange(due.shape[1])
    for c in range(due.shape[2]):
        rest = due[:, :, c] - counts[:, :, c]
        order = np.argsort(np.where(rest > 1e-9, -(rest + carry + ties), np.inf), axis=1, kind="stable")
        extra = np.zeros_like(rest)
        np.put_along_axis(extra, order, (ranks < left[:, c, None]).astype(float), axis=1)
        counts[:, :, c] += extra
        if even:
            carry += rest - extra
    return counts.astype(np.int64)


# --- rows ---------------------------------------------------------------------------------------------------


def _deal(stratum: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each row's client, int64 [n]: a group's rows of a class, shuffled, `counts` of them to each member."""
    groups, members, classes = counts.shape
    order = generator.permutation(len(stratum))
    order = order[np.argsort(stratum[order], kind="stable")]
    client = np.broadcast_to(
        np.arange(groups * members).reshape(groups, 1, members), (groups, classes, members)
    )
    owner = np.empty(len(stratum), dtype=np.int64)
    owner[order] = np.repeat(client.ravel(), counts.transpose(0, 2, 1).ravel())
    return owner


def holdout_sizes(held: np.ndarray, share: float) -> np.ndarray:
    """Test samples of clients with `held` samples in all: this share of them, at least 1."""
    return np.maximum(1, np.rint(held * share).astype(np.int64))


def bincount(values: np.ndarray, length: int) -> np.ndarray:
    """How often each of 0 to length - 1 occurs, int64 [length]."""
    return np.bincount(values, minlength=length).astype(np.int64)


def too_few(who: str, own: int, tests: int, split: bool, config: PartitionConfig, alpha: str) -> FedmsError:
    """The error for clients below the minimum.

    `split` says whether test samples come apart; `alpha` names one more way out, or is empty.
    """
    fewer = "" if config.rule == "files" else "fewer partition.clients, "
    remedy = f"use {fewer}{alpha}a smaller partition.min_samples, or more data"
    what = f"{own} samples and {tests} test samples" if split else f"{own} samples to train and test on"
    return FedmsError(
        f"{who} would hold {what}, but each client needs partition.min_samples ({config.min_samples}) "
        f"and a test: {remedy}"
    )
