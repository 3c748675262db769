"""Attacks of a curious server on what clients send, and what the protections leave of them."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fedms.core.errors import FedmsError
from fedms.federation.exchanges import CALIBRATION, STATISTICS
from fedms.federation.exchanges.base import Expected, behind
from fedms.federation.exchanges.checks import RefusalError
from fedms.federation.exchanges.statistics import FeaturesAsked
from fedms.model.discriminant import SHRINKAGES
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
        sums = FeatureSums.from_arrays(update.arrays)
        found += len(attacks.recovered(sums, x, view.samples("train").labels, 1))
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


# class sums


def test_a_sum_of_few_samples_is_these_samples(attacks, candidates):
    x, labels = candidates
    for size in (1, 2, 3):
        kept = torch.cat([(labels == label).nonzero()[:size, 0] for label in range(CLASSES)])
        sums = FeatureSums.of(x[kept], labels[kept], CLASSES, second=False)
        found = attacks.recovered(sums, x, labels, size)
        assert found == {label: (labels == label).nonzero()[:size, 0].tolist() for label in range(CLASSES)}
        assert attacks.recovered(sums, x, labels, size % 3 + 1) == {}


@pytest.mark.parametrize(("least", "low", "high"), [(1, 0.9, 1), (MEMBERS, 0.4, 0.6)])
def test_class_sums_tell_members_unless_the_classes_are_too_small_to_be_sent(
    attacks, candidates, least, low, high
):
    x, labels = candidates
    counted = torch.bincount(labels[:MEMBERS], minlength=CLASSES)[labels[:MEMBERS]] >= least
    sent = FeatureSums.of(x[:MEMBERS][counted], labels[:MEMBERS][counted], CLASSES, second=False)
    everyone = FeatureSums.of(x, labels, CLASSES).discriminant()
    score = attacks.share_of_mean(sent, everyone, x, labels)
    assert low <= attacks.auc(score[:MEMBERS], score[MEMBERS:]) <= high


# likelihoods of validation labels

AS_SUMMED = torch.Tensor.float
"""How the sums travelled, if they travelled as they are."""


@pytest.fixture
def likelihoods(candidates):
    """log p of each candidate's label at each shrinkage and temperature of the discriminant, [200, 78]."""
    x, labels = candidates
    discriminant = FeatureSums.of(x, labels, CLASSES).discriminant()
    return discriminant.log_likelihoods(x, labels, SHRINKAGES).flatten(0, 1).T.double()


@pytest.mark.parametrize(("sent", "low", "high"), [(AS_SUMMED, 0.85, 1), (behind, 0.4, 0.65)])
def test_only_exact_sums_of_likelihoods_tell_which_samples_are_in_the_split(
    attacks, likelihoods, generator, sent, low, high
):
    found = []
    for first in range(0, 200, 40):
        message = sent(likelihoods[first : first + 8].sum(0))
        score = attacks.in_split(message.double(), likelihoods, lambda x: sent(x).double(), 8, generator)
        inside = torch.zeros(len(score), dtype=torch.bool)
        inside[first : first + 8] = True
        found.append(attacks.auc(score[inside], score[~inside]))
    assert low <= sum(found) / 5 <= high


@pytest.mark.parametrize("size", [1, 2])
def test_a_small_split_is_named_unless_it_has_no_say(attacks, likelihoods, size):
    few = likelihoods[:40]
    assert attacks.named(AS_SUMMED(few[3 : 3 + size].sum(0)), few, AS_SUMMED, size) == 1
    mute = torch.zeros_like
    assert attacks.named(mute(few[0]), few, mute, size) < 0.03


def test_what_is_sent_of_likelihoods_is_bounded_and_says_which_is_best():
    sums = torch.tensor([[-900.0, -2.04, -1.0, -1e9], [-5.0, -5.0, -5.04, -5.06]])
    told = behind(sums)
    torch.testing.assert_close(told, torch.tensor([[-4.0, -1.0, 0.0, -4.0], [0.0, 0.0, 0.0, -0.1]]))
    assert torch.equal(behind(told), told)


def test_a_client_with_a_small_validation_split_has_no_say(asked):
    world, updates = asked()
    strict, _ = asked("statistics.least=1000")
    discriminant, told = STATISTICS.result(updates, world.server.recipe).discriminant(), []
    for each in (world, strict):
        each.server.shared |= discriminant.to_arrays()
        told.append(each.ask(CALIBRATION, each.server.clients, each.stage, 0, FeaturesAsked("backbone")))
    assert all(update.arrays["calibrate.log_likelihood"].any() for update in told[0])
    assert not any(update.arrays["calibrate.log_likelihood"].any() for update in told[1])
    declared = {"validation": int(told[0][0].weight)}
    wary = Expected(strict.server.recipe, strict.world.backbone, 3, 3, 2, declared)
    CALIBRATION.check(strict.exchanges[-1][0], told[1][0], wary)
    with pytest.raises(RefusalError, match="is of fewer than 1000 validation samples"):
        CALIBRATION.check(strict.exchanges[-1][0], told[0][0], wary)
    with pytest.raises(FedmsError, match=r"statistics\.least: no client has 1000 validation samples"):
        CALIBRATION.result(told[1], strict.server.recipe)


# updates


def test_a_head_moves_the_way_in_which_its_samples_pull_it(attacks, candidates):
    x, labels = candidates
    start = torch.zeros(CLASSES, SIZE)
    logits = x @ start.T
    pull = F.one_hot(labels, CLASSES) - logits.softmax(1)
    for members, low, high in ((slice(0, MEMBERS), 0.9, 1), (slice(0, 0), 0.5, 0.5)):
        trained = start + pull[members].T @ x[members]
        score = attacks.alignment(start, trained, x, logits, labels)
        assert low <= attacks.auc(score[:MEMBERS], score[MEMBERS:]) <= high
