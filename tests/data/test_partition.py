"""Partitions: nothing twice, nothing lost, one distribution a client, the same for a seed."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fedms.config import load_config
from fedms.config.data import PARTITION_RULES, PartitionConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.data.partition import RULES, ClientSplit, Partition, Rule, partition, register_partition
from fedms.data.partition_rules import allocate
from fedms.data.sources import Dataset


def data(classes: int = 6, each: int = 200, test: int = 0, **columns: np.ndarray) -> Dataset:
    """`each` training and `test` test rows of every class, classes taking turns."""
    train, tests = np.tile(np.arange(classes), each), np.tile(np.arange(classes), test)
    labels = np.concatenate([train, tests])
    is_test = np.arange(len(labels)) >= len(train) if test else None
    names = tuple(f"class {i}" for i in range(classes))
    return Dataset("text", [""] * len(labels), labels, names, columns, is_test)


def domains(dataset: Dataset, values: list[str]) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(
        "text",
        dataset.inputs,
        dataset.labels,
        dataset.class_names,
        {"domain": rng.choice(values, len(dataset.labels))},
        dataset.is_test,
    )


def check(dataset: Dataset, result: Partition, minimum: int) -> None:
    """What holds for every partition."""
    splits = [rows for client in result.clients for rows in (client.train, client.validation, client.test)]
    assert sorted(np.concatenate(splits).tolist()) == list(range(len(dataset.labels)))
    assert len({client.name for client in result.clients}) == len(result.clients)
    for client in result.clients:
        assert all(
            rows.dtype == np.int64 and (np.diff(rows) > 0).all()
            for rows in (client.train, client.validation, client.test)
        )
        assert len(client.train) + len(client.validation) >= minimum
        assert min(len(client.train), len(client.validation), len(client.test)) >= 1
    if dataset.is_test is not None:
        tests = np.concatenate([client.test for client in result.clients])
        assert sorted(tests.tolist()) == np.flatnonzero(dataset.is_test).tolist()


def histogram(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    return np.bincount(dataset.labels[rows], minlength=len(dataset.class_names))


BUILT_IN = [
    {"rule": "dirichlet", "alpha": 0.3},
    {"rule": "classes", "classes_per_client": 2},
    {"rule": "column", "column": "domain", "alpha": 0.5},
    {"rule": "column", "column": "domain", "alpha": None},
    {"rule": "equal"},
]


@pytest.mark.parametrize("keys", BUILT_IN, ids=lambda keys: f"{keys['rule']}-{keys.get('alpha', '')}")
@pytest.mark.parametrize("test", [0, 60])
def test_every_sample_has_one_place(keys: dict[str, Any], test: int) -> None:
    dataset = domains(data(test=test), ["a", "b", "c", "d"])
    for seed in range(5):
        check(dataset, partition(dataset, PartitionConfig(clients=12, **keys), seed), 10)


@pytest.mark.parametrize("keys", BUILT_IN, ids=lambda keys: f"{keys['rule']}-{keys.get('alpha', '')}")
def test_a_clients_splits_are_of_one_distribution(keys: dict[str, Any]) -> None:
    config = PartitionConfig(clients=8, validation=0.2, test=0.25, **keys)
    dataset = domains(data(), ["a", "b"])
    for client in partition(dataset, config, 0).clients:
        train, validation, test = (
            histogram(dataset, rows) for rows in (client.train, client.validation, client.test)
        )
        held, rest = train + validation + test, train + validation
        assert test.sum() == max(1, round(held.sum() * 0.25)) and validation.sum() == max(
            1, round(rest.sum() * 0.2)
        )
        assert (np.abs(test - held * test.sum() / held.sum()) < 1).all()
        assert (np.abs(validation - rest * validation.sum() / rest.sum()) < 1).all()


def test_a_given_test_split_follows_the_training_shares() -> None:
    dataset = data(classes=10, each=300, test=100)
    for client in partition(dataset, PartitionConfig(clients=10, alpha=0.2), 3).clients:
        own = histogram(dataset, np.concatenate([client.train, client.validation]))
        assert (np.abs(histogram(dataset, client.test) - own / 3) < 1).all()


def test_rare_classes_are_spread_over_the_splits() -> None:
    dataset = data(classes=100, each=10)  # a client holds about one sample of a class
    config = PartitionConfig(clients=10, rule="equal", test=0.2, validation=0.1)
    clients = partition(dataset, config, 0).clients
    tested = np.sum([histogram(dataset, client.test) for client in clients], axis=0)
    assert tested.sum() == 200 and (tested > 0).mean() > 0.8


def test_the_same_seed_gives_the_same_partition() -> None:
    dataset = data()
    config = PartitionConfig(clients=5, alpha=0.5)
    first, again, other = (partition(dataset, config, seed) for seed in (7, 7, 8))
    same = [
        np.array_equal(a.train, b.train) and np.array_equal(a.test, b.test)
        for a, b in zip(first.clients, again.clients, strict=True)
    ]
    assert all(same)
    assert not np.array_equal(first.clients[0].train, other.clients[0].train)


def test_a_partition_that_must_not_change() -> None:
    """Results of earlier runs are worth nothing once this changes."""
    result = partition(data(classes=3, each=12), PartitionConfig(clients=3, alpha=1.0, min_samples=3), 0)
    assert [[rows.tolist() for rows in (c.train, c.validation, c.test)] for c in result.clients] == PINNED


PINNED = [
    [[0, 3, 6, 8, 9, 11, 12, 15, 18, 24, 27, 32], [23], [21, 30, 35]],
    [[2, 16, 19, 20, 25, 28, 29], [4], [1, 5]],
    [[7, 10, 13, 14, 26, 33, 34], [31], [17, 22]],
]


def test_the_skew_grows_as_alpha_falls() -> None:
    dataset = data(classes=10, each=500)

    def distance(alpha: float) -> float:
        """Mean total variation between a client's classes and everyone's."""
        counts = partition(dataset, PartitionConfig(clients=10, alpha=alpha), 0).counts(dataset.labels, 10)
        shares = counts / counts.sum(1, keepdims=True)
        return float(np.abs(shares - 0.1).sum(1).mean() / 2)

    found = [distance(alpha) for alpha in (0.05, 0.3, 1, 10, 1e6)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.7 and found[-1] < 0.02


def test_counts_are_of_training_and_validation() -> None:
    rows = [np.array(r, dtype=np.int64) for r in ([0, 1], [2], [3], [4], [5], [])]
    result = Partition((ClientSplit("a", *rows[:3]), ClientSplit("b", *rows[3:])))
    counts = result.counts(np.array([0, 0, 2, 2, 1, 0]), 3)
    assert counts.dtype == np.int64 and counts.tolist() == [[2, 0, 1], [1, 1, 0]]


# --- rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clients", "each"), [(10, 2), (7, 3), (3, 2), (25, 5), (12, 1)])
def test_a_client_holds_so_many_classes(clients: int, each: int) -> None:
    dataset = data(classes=6, each=200)
    if each == 5:
        dataset = data(classes=7, each=200)
    counts = partition(
        dataset, PartitionConfig(clients=clients, rule="classes", classes_per_client=each), 1
    ).counts(dataset.labels, len(dataset.class_names))
    assert ((counts > 0).sum(1) == each).all()
    holders = (counts > 0).sum(0)
    assert holders.min() >= 1 and holders.max() - holders.min() <= 1


def test_a_column_gives_each_value_clients_of_its_own() -> None:
    dataset = domains(data(test=60), ["Art Painting", "art-painting", "Größe", "照片"])
    result = partition(dataset, PartitionConfig(clients=8, rule="column", column="domain", alpha=1.0), 0)
    names = [client.name for client in result.clients]
    assert names == [
        "art-painting-0",
        "art-painting-1",
        "grosse-0",
        "grosse-1",
        "art-painting-2-0",
        "art-painting-2-1",
        "value-0",
        "value-1",
    ]
    for client in result.clients:
        assert (
            len(
                set(dataset.columns["domain"][np.concatenate([client.train, client.validation, client.test])])
            )
            == 1
        )


def test_equal_clients_are_equal() -> None:
    dataset = data(classes=7, each=53, test=11)
    result = partition(dataset, PartitionConfig(clients=9, rule="equal"), 0)
    counts = result.counts(dataset.labels, 7)
    assert np.ptp(counts, axis=0).max() <= 1 and np.ptp(counts.sum(1)) <= 1
    assert np.ptp([len(client.test) for client in result.clients]) <= 1


@pytest.mark.parametrize(
    ("clients", "name"), [(1, "client-0"), (10, "client-9"), (11, "client-10"), (100, "client-99")]
)
def test_names_are_padded(clients: int, name: str) -> None:
    result = partition(data(), PartitionConfig(clients=clients, rule="equal", min_samples=3), 0)
    assert result.clients[-1].name == name and len({len(client.name) for client in result.clients}) == 1


def test_rounding_keeps_totals_and_quotas() -> None:
    rng = np.random.default_rng(0)
    totals = rng.integers(0, 50, (3, 9))
    shares = rng.dirichlet(np.full(7, 0.3), (3, 9)).transpose(0, 2, 1)
    for even in (False, True):
        counts = allocate(shares, totals, rng, even)
        assert (counts.sum(axis=1) == totals).all()
        assert (np.abs(counts - totals[:, None] * shares) < 1).all()


# --- what cannot be -----------------------------------------------------------------------------------------


def test_small_clients_are_drawn_again() -> None:
    dataset = data(classes=4, each=100)
    for seed in range(10):
        check(dataset, partition(dataset, PartitionConfig(clients=10, alpha=0.05, min_samples=8), seed), 8)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (
            {"clients": 200},
            FedmsError,
            "the 200 clients together would hold 1200 samples to train and test on, but each",
        ),
        ({"clients": 60, "alpha": 0.001}, FedmsError, "a larger partition.alpha"),
        (
            {"clients": 9, "rule": "column", "column": "domain"},
            ConfigError,
            "partition.clients: 9 must be a multiple of 2",
        ),
        ({"rule": "column", "column": "user"}, FedmsError, "no column 'user' in the data; columns: domain"),
        (
            {"rule": "classes", "classes_per_client": 7},
            ConfigError,
            "partition.classes_per_client: 7 is more than the 6 classes",
        ),
        ({"clients": 2, "rule": "classes"}, ConfigError, "2 clients of 2 cannot hold all 6 classes"),
    ],
)
def test_what_cannot_be_is_one_line(keys: dict[str, Any], error: type[FedmsError], message: str) -> None:
    dataset = domains(data(), ["a", "b"])
    with pytest.raises(error) as caught:
        partition(dataset, PartitionConfig(**keys), 0)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert type(caught.value) is error


def test_a_client_below_the_minimum_is_named() -> None:
    dataset = data(classes=2, each=200)
    with pytest.raises(
        FedmsError,
        match=r"^client-\d\d would hold \d+ samples to train and test on, .* partition\.min_samples \(10\)",
    ):
        partition(dataset, PartitionConfig(clients=20, alpha=1e-4), 0)


def test_a_missing_value_and_a_thin_value_are_named() -> None:
    dataset = data(domain=np.array(["a"] * 1199 + [""]))
    config = PartitionConfig(clients=4, rule="column", column="domain")
    with pytest.raises(FedmsError, match="sample 1200 has no value in column 'domain'"):
        partition(dataset, config, 0)
    with pytest.raises(FedmsError, match="the 2 clients of domain 'b' together would hold 4 samples"):
        partition(data(domain=np.array(["a"] * 1196 + ["b"] * 4)), config, 0)


def test_many_clients_take_seconds() -> None:
    dataset = data(classes=50, each=4_000)
    start = time.perf_counter()
    result = partition(dataset, PartitionConfig(clients=10_000, alpha=0.3, min_samples=5), 0)
    assert time.perf_counter() - start < 20
    assert result.counts(dataset.labels, 50).sum(1).min() >= 5


# --- rules of one's own ---


@pytest.fixture
def rule() -> Iterator[Callable[[str, Rule], None]]:
    """Register rules; forget them after the test."""
    added = []

    def add(name: str, function: Rule) -> None:
        register_partition(name, function)
        added.append(name)

    yield add
    for name in set(added):
        del RULES[name]
        PARTITION_RULES.remove(name)


def in_turn(dataset: Dataset, config: PartitionConfig, seed: int) -> tuple[list[str], np.ndarray]:
    """Rows go to the clients in turn."""
    clients = config.clients or 0
    return [f"site-{i}" for i in range(clients)], np.arange(len(dataset.labels)) % clients


@pytest.mark.parametrize("test", [0, 60])
def test_a_rule_of_ones_own_is_named_in_the_config(rule: Callable[[str, Rule], None], test: int) -> None:
    rule("in-turn", in_turn)
    config = load_config({"partition": {"rule": "in-turn", "clients": 5}, "federation": {"cohort": 2}})
    dataset = data(test=test)
    result = partition(dataset, config.partition, 0)
    check(dataset, result, 10)
    assert [client.name for client in result.clients] == [f"site-{i}" for i in range(5)]
    for place, client in enumerate(result.clients):
        assert (np.concatenate([client.train, client.validation, client.test]) % 5 == place).all()
    rule("in-turn", in_turn)  # a module that is imported again registers again


def test_a_wrong_rule_is_one_line_that_lists_what_is_allowed(rule: Callable[[str, Rule], None]) -> None:
    rule("in-turn", in_turn)
    line = (
        "partition.rule: input should be 'dirichlet', 'classes', 'column', 'equal', 'files' or 'in-turn', "
        "not 'iid'"
    )
    with pytest.raises(ConfigError) as caught:
        load_config({"partition": {"rule": "iid"}})
    assert str(caught.value) == line
    with pytest.raises(ConfigError) as caught:
        partition(data(), PartitionConfig().model_copy(update={"rule": "iid"}), 0)
    assert str(caught.value) == line
    with pytest.raises(ConfigError, match=r"^partition.rule: the name 'equal' is taken already$"):
        register_partition("equal", in_turn)


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        ((["a"], np.zeros(1200, dtype=np.int64)), "made 1 clients, but partition.clients is 2"),
        ((["a", "../b"], np.arange(1200) % 2), "'../b' cannot name a client's folder"),
        ((["a", "A"], np.arange(1200) % 2), "two clients have one name"),
        ((["a", "b"], np.arange(1200) % 3), "must give each of the 1200 rows one client"),
        ((["a", "b"], np.arange(1199) % 2), "must give each of the 1200 rows one client"),
        ((["a", "b"], np.arange(1200) % 2.0), "must give each of the 1200 rows one client"),
        ((["a", "b"], (np.arange(1200) < 9).astype(np.int64)), "b would hold 9 samples to train"),
        ((["a", "b"], np.zeros(1200, dtype=np.int32)), "b would hold 0 samples to train"),
        ((["a", "b"], ["a"] * 1200), "must give each of the 1200 rows one client"),
    ],
)
def test_what_a_rule_of_ones_own_returns_is_checked(
    rule: Callable[[str, Rule], None], returns: Any, says: str
) -> None:
    rule("bad", lambda dataset, config, seed: returns)
    with pytest.raises(FedmsError) as caught:
        partition(data(), PartitionConfig(clients=2, rule="bad"), 0)
    assert says in str(caught.value) and "\n" not in str(caught.value)
