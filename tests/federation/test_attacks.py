"""Attacks of a curious server on feature statistics, and what the defaults leave of them."""

import importlib
from pathlib import Path

import pytest
import torch

from fedms.model.statistics import FeatureSums, normalise

SIZE, CLASSES, MEMBERS = 64, 4, 30


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    return importlib.import_module("common.attacks")


@pytest.fixture
def candidates(generator: torch.Generator):
    """Features [200, SIZE] and labels, of which the first MEMBERS are the client's."""
    return normalise(torch.randn(200, SIZE, generator=generator)), torch.arange(200) % CLASSES


def test_the_second_moment_names_the_samples(attacks, candidates):
    x, labels = candidates
    arrays = FeatureSums.of(x[:MEMBERS], labels[:MEMBERS], CLASSES).to_arrays()
    score = attacks.leverage(FeatureSums.from_arrays(arrays).second, x)
    assert attacks.auc(score[:MEMBERS], score[MEMBERS:]) > 0.999


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
