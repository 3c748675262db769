"""Attacks of a curious server on feature statistics, and what the defaults leave of them."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedms.core.errors import FedmsError
from fedms.federation.exchanges import STATISTICS
from fedms.federation.exchanges.base import Expected
from fedms.federation.exchanges.checks import RefusalError
from fedms.federation.exchanges.statistics import FeaturesAsked
from fedms.model.statistics import FeatureSums, normalise
from small_world import federation, opened, settings  # noqa: F401 (fixtures)

SIZE, CLASSES, MEMBERS = 64, 4, 30


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    return importlib.import_module("common.attacks")


@pytest.fixture
def candidates(generator: torch.Generator):
    """Features [200, SIZE] and labels, of which the first MEMBERS are the client's."""
    return normalise(torch.randn(200, SIZE, generator=generator)), torch.arange(200) % CLASSES


@pytest.fixture
def asked(federation):  # noqa: F811
    """The world of these settings, and every client's answer to the question for its statistics."""

    def ask(*overrides: str):
        world = federation("fedms", "partition.alpha=0.3", *overrides)
        return world, world.ask(STATISTICS, world.server.clients, world.stage, 0, FeaturesAsked("backbone"))

    return ask


def beside(x: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """x without what the class sums, which are sent in any case, say about it; of one length."""
    basis = torch.linalg.qr(sums.double().T).Q
    return normalise(x.double() - x.double() @ basis @ basis.T)


@pytest.mark.parametrize(("sent", "low", "high"), [(True, 0.999, 1), (False, 0.4, 0.6)])
def test_beside_the_sums_only_the_second_moment_names_the_samples(attacks, candidates, sent, low, high):
    x, labels = candidates
    arrays = FeatureSums.of(x[:MEMBERS], labels[:MEMBERS], CLASSES, sent).to_arrays()
    known = FeatureSums.from_arrays(arrays)
    known = known if sent else FeatureSums.estimated([known])
    # rounded, so that what the server sees as level is level
    score = attacks.leverage(known.second, beside(x, known.sums)).float().round(decimals=3)
    assert low <= attacks.auc(score[:MEMBERS], score[MEMBERS:]) <= high


def test_by_default_no_second_moment_leaves_a_client(asked):
    def names(*overrides: str) -> set[str]:
        return {name for update in asked(*overrides)[1] for name in update.arrays}

    assert names() == {"statistics.counts", "statistics.sums"}
    assert names("statistics.second_moment=true") - names() == {"statistics.second"}


@pytest.mark.parametrize("least", [1, 4])
def test_a_small_class_is_sent_only_where_small_classes_may_be(asked, least):
    _, updates = asked(f"statistics.least={least}")
    counts = torch.cat([update.arrays["statistics.counts"] for update in updates])
    sums = torch.cat([update.arrays["statistics.sums"] for update in updates])
    small = (counts > 0) & (counts < 4)
    assert bool(small.any()) == (least == 1)
    assert bool((counts >= 4).any())
    assert not sums[counts == 0].any()


@pytest.mark.parametrize("least", [1, 2])
def test_with_least_no_sample_is_recovered_from_its_sum(attacks, asked, least):
    world, _ = asked(f"statistics.least={least}")
    found = 0
    for task, update in world.exchanges:
        view = world.host.view(task)
        x = view.runner.frozen_outputs("backbone", None, view.samples("train"), view.boundary).features
        found += len(attacks.recovered(update.arrays, x))
    assert (found > 0) == (least == 1)


def expected(world, update):
    return Expected(world.server.recipe, world.world.backbone, 3, 3, 2, {"train": int(update.weight)})


def test_a_client_that_sends_a_small_class_all_the_same_is_refused(asked):
    world, updates = asked()
    small = next(
        update
        for update in updates
        if ((counts := update.arrays["statistics.counts"]) > 0).logical_and(counts < 4).any()
    )
    strict, _ = asked("statistics.least=4")
    STATISTICS.check(world.exchanges[0][0], small, expected(world, small))
    with pytest.raises(RefusalError, match="a class of fewer than 4 samples"):
        STATISTICS.check(world.exchanges[0][0], small, expected(strict, small))


def test_with_least_a_client_may_count_fewer_samples_than_it_has_and_not_more(asked):
    world, updates = asked("statistics.least=4")
    for update in updates:
        STATISTICS.check(world.exchanges[0][0], update, expected(world, update))
    more = replace(
        updates[0],
        arrays=updates[0].arrays | {"statistics.counts": torch.full((3,), updates[0].weight + 4.0)},
    )
    with pytest.raises(RefusalError, match=r"are not \d+ samples counted"):
        STATISTICS.check(world.exchanges[0][0], more, expected(world, updates[0]))


def test_where_no_class_is_large_enough_one_line_says_so(asked):
    world, updates = asked("statistics.least=1000")
    with pytest.raises(FedmsError, match=r"statistics\.least: no client has 1000 samples"):
        STATISTICS.result(updates, world.server.recipe)


def test_a_sum_of_one_sample_is_that_sample(attacks, candidates):
    x, labels = candidates
    arrays = FeatureSums.of(x[:4], labels[:4], CLASSES, second=False).to_arrays()
    assert attacks.recovered(arrays, x) == {0: 0, 1: 1, 2: 2, 3: 3}


def test_a_guess_is_a_half(attacks):
    assert attacks.auc(torch.zeros(3), torch.zeros(5)) == 0.5


def test_the_estimated_covariance_is_near_the_true_one(generator: torch.Generator):
    scale = torch.linspace(0.2, 3, 16)
    x = normalise(torch.randn(6000, 16, generator=generator) * scale)
    labels = torch.arange(6000) % 3
    parts = [FeatureSums.of(x[at], labels[at], 3, second=False) for at in torch.arange(6000).split(6)]
    estimated, true = FeatureSums.estimated(parts).second, FeatureSums.of(x, labels, 3).second
    assert estimated is not None and true is not None
    assert float((estimated - true).norm() / true.norm()) < 0.15
    flat = torch.eye(16) * true.trace() / 16
    assert float((flat - true).norm() / true.norm()) > 0.5


def test_without_two_clients_of_one_class_the_covariance_is_round(candidates):
    x, labels = candidates
    sums = FeatureSums.estimated([FeatureSums.of(x, labels, CLASSES, second=False)])
    covariance = sums.discriminant().covariance
    assert covariance is not None
    torch.testing.assert_close(covariance, torch.eye(SIZE) * covariance[0, 0])
