"""Feature sums: they add up, travel, and give the textbook discriminant and the evidence of own data."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedms.model.discriminant import SHRINKAGES, TEMPERATURES, Discriminant, mixed_prior, posterior_mean
from fedms.model.evidence import MEAN_STRENGTH, Evidence
from fedms.model.statistics import FeatureSums, normalise

CLASSES, SIZE = 4, 6


def samples(count=400, spread=0.5, seed=0, classes=CLASSES, size=SIZE):
    """Gaussian classes with a common, correlated covariance."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, size, generator=torch.Generator().manual_seed(99)) * 2
    shape = torch.randn(size, size, generator=torch.Generator().manual_seed(98)) * spread
    labels = torch.randint(0, classes, (count,), generator=generator)
    return centres[labels] + torch.randn(count, size, generator=generator) @ shape, labels


def known(moment: torch.Tensor | None) -> torch.Tensor:
    assert moment is not None
    return moment


def same(left: FeatureSums, right: FeatureSums, tolerance=1e-12):
    for name in ("counts", "sums", "second"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name), atol=tolerance, rtol=tolerance)


def test_normalised_features_have_length_sqrt_d():
    x = torch.randn(5, 9)
    torch.testing.assert_close(normalise(x).norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(normalise(x), normalise(7 * x))


def test_the_sums_are_what_they_say():
    x, labels = samples(50)
    made = FeatureSums.of(x, labels, CLASSES + 1)
    exact = x.double().numpy()
    for c in range(CLASSES + 1):
        assert made.counts[c] == int((labels == c).sum())
        np.testing.assert_allclose(made.sums[c], exact[labels.numpy() == c].sum(0), atol=1e-12)
    np.testing.assert_allclose(known(made.second), sum(np.outer(row, row) for row in exact), atol=1e-10)


@pytest.mark.parametrize("skewed", [False, True])
def test_the_total_of_parts_is_the_statistics_of_all(skewed):
    x, labels = samples()
    order = labels.argsort() if skewed else torch.arange(len(labels))
    parts = [FeatureSums.of(x[rows], labels[rows], CLASSES) for rows in order.split([1, 30, 169, 200])]
    same(FeatureSums.total(parts), FeatureSums.of(x, labels, CLASSES), 1e-10)


def test_the_full_triangle_travels_without_loss():
    x, labels = samples()
    made = FeatureSums.of(
        x.round(decimals=0), labels, CLASSES
    )  # whole numbers, so that float32 holds them all
    arrays = made.to_arrays()
    same(FeatureSums.from_arrays(arrays), made, 0)
    assert {array.dtype for array in arrays.values()} == {torch.float32}
    assert (
        sum(array.numel() for array in arrays.values()) == CLASSES + CLASSES * SIZE + SIZE * (SIZE + 1) // 2
    )
    same(FeatureSums.from_arrays(made.to_arrays(rank=SIZE)), made, 0)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_limited_rank_keeps_the_trace_and_the_leading_directions(rank):
    x, labels = samples()
    made = FeatureSums.of(x, labels, CLASSES)
    arrays = made.to_arrays(rank)
    back = FeatureSums.from_arrays(arrays)
    assert sum(array.numel() for array in arrays.values()) == CLASSES + CLASSES * SIZE + SIZE * rank + 1
    torch.testing.assert_close(known(back.second).trace(), known(made.second).trace(), rtol=1e-5, atol=0)
    values, vectors = torch.linalg.eigh(known(made.second))
    top = vectors[:, -rank:]
    torch.testing.assert_close(
        top.T @ known(back.second) @ top, torch.diag(values[-rank:]), rtol=1e-4, atol=1e-2
    )
    torch.testing.assert_close(back.counts, made.counts)


def test_more_rank_is_closer():
    x, labels = samples()
    made = FeatureSums.of(x, labels, CLASSES)
    errors = [
        float((known(FeatureSums.from_arrays(made.to_arrays(rank)).second) - known(made.second)).norm())
        for rank in (1, 3, 5, 6)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 < errors[0]


# the discriminant


def lda(x, labels, classes, shrinkage):
    """Log-posteriors by the textbook: class means, the pooled covariance around them, Bayes' rule."""
    x = x.astype(np.float64)
    means = np.stack([x[labels == c].mean(0) for c in range(classes)])
    rest = x - means[labels]
    covariance = rest.T @ rest / len(x)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.diag(covariance).mean() * np.eye(x.shape[1])
    inverse = np.linalg.inv(covariance)
    prior = np.bincount(labels, minlength=classes) / len(x)

    def log_posterior(new):
        away = new.astype(np.float64)[:, None] - means
        scores = -0.5 * np.einsum("ncd,de,nce->nc", away, inverse, away) + np.log(prior)
        return (
            scores
            - np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1, keepdims=True))
            - scores.max(1, keepdims=True)
        )

    return log_posterior


@pytest.mark.parametrize("shrinkage", [0.05, 0.3, 1.0, None])
def test_the_discriminant_is_lda_written_out(shrinkage):
    x, labels = samples(spread=1.0)
    new, _ = samples(30, spread=1.0, seed=1)
    discriminant = FeatureSums.of(x, labels, CLASSES).discriminant(shrinkage)
    made = (discriminant.scores(new) + discriminant.prior.log()).log_softmax(1)
    expected = lda(x.numpy(), labels.numpy(), CLASSES, 0.05 if shrinkage is None else shrinkage)(new.numpy())
    assert np.exp(expected).max(1).min() < 0.9, "too easy: every posterior is near 1"
    np.testing.assert_allclose(made.numpy(), expected, atol=2e-3)


def test_shrinkage_grows_by_default_where_samples_are_few():
    x, labels = samples(12)
    few = FeatureSums.of(x, labels, CLASSES)
    torch.testing.assert_close(few.discriminant().precision, few.discriminant(SIZE / (SIZE + 12)).precision)


def test_well_separated_gaussians_are_told_apart():
    (x, labels), (new, truth) = samples(spread=0.2), samples(spread=0.2, seed=1)
    discriminant = FeatureSums.of(x, labels, CLASSES).discriminant()
    assert (discriminant.scores(new).argmax(1) == truth).float().mean() > 0.99


def test_a_diagonal_covariance_would_miss_what_the_full_one_sees():
    """Two classes that differ across a narrow, tilted cloud: each coordinate alone tells them apart badly."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 2
    along, across = (
        torch.randn(2000, 1, generator=generator) * 5,
        torch.randn(2000, 1, generator=generator) * 0.2,
    )
    across = across + torch.where(labels == 0, -0.6, 0.6)[:, None]
    x = along * torch.tensor([1.0, 1.0]) + across * torch.tensor([1.0, -1.0])
    statistics = FeatureSums.of(x[:1000], labels[:1000], 2)
    full = statistics.discriminant(1e-4)
    diagonal = replace(full, covariance=torch.diag(known(full.covariance).diagonal()))
    own = FeatureSums.of(x[:1000][labels[:1000] == 0], labels[:1000][labels[:1000] == 0], 2)
    seen, missed = Evidence(full, own).log_ratio(x[1000:]), Evidence(diagonal, own).log_ratio(x[1000:])
    truth = labels[1000:]
    accuracy = [(each.scores(x[1000:]).argmax(1) == truth).float().mean() for each in (full, diagonal)]
    assert accuracy[0] > 0.99
    assert accuracy[1] < 0.7
    assert seen[truth == 0].mean() > seen[truth == 1].mean() + 1
    assert abs(missed[truth == 0].mean() - missed[truth == 1].mean()) < 0.2


def test_a_class_that_nobody_holds_stays_finite_and_unlikely():
    x, labels = samples()
    discriminant = FeatureSums.of(x, labels, CLASSES + 1).discriminant()
    scores = discriminant.scores(x) + discriminant.prior.log()
    assert torch.isfinite(scores).all()
    assert (scores.argmax(1) == CLASSES).float().mean() < 0.05


def test_one_sample_and_equal_samples_stay_finite():
    for x in (torch.ones(1, SIZE), torch.ones(5, SIZE)):
        discriminant = FeatureSums.of(x, torch.zeros(len(x), dtype=torch.long), 2).discriminant()
        assert torch.isfinite(discriminant.scores(x)).all()


def test_the_temperature_with_the_best_likelihood_is_picked():
    (x, labels), (new, truth) = samples(spread=1.0), samples(2000, spread=1.0, seed=1)
    discriminant = FeatureSums.of(x, labels, CLASSES).discriminant(1e-3)
    likelihood = discriminant.log_likelihood(new, truth, [1e-3])
    by_hand = []
    for t in TEMPERATURES:
        logits = replace(discriminant, temperature=t).scores(new) + discriminant.prior.log()
        by_hand.append(float(logits.log_softmax(1)[torch.arange(len(new)), truth].sum()))
    np.testing.assert_allclose(likelihood[0].numpy(), by_hand, rtol=1e-4)
    best = discriminant.calibrated(likelihood, [1e-3])
    assert best.temperature == TEMPERATURES[int(np.argmax(by_hand))] == 1.0
    parts = discriminant.log_likelihood(new[:500], truth[:500], [1e-3]) + discriminant.log_likelihood(
        new[500:], truth[500:], [1e-3]
    )
    torch.testing.assert_close(parts, likelihood, rtol=1e-4, atol=1e-2)
    overconfident = replace(discriminant, covariance=known(discriminant.covariance) / 4, shrinkage=1e-9)
    likelihood = overconfident.log_likelihood(new, truth, [1e-9])
    assert overconfident.calibrated(likelihood, [1e-9]).temperature == 4.0


def test_the_shrinkage_with_the_best_likelihood_is_picked_where_dimensions_exceed_samples():
    (x, labels), (new, truth) = (
        (normalise(x), labels) for x, labels in (samples(12, 3.0, 0, 3, 60), samples(900, 3.0, 1, 3, 60))
    )
    discriminant = FeatureSums.of(x, labels, 3).discriminant()
    likelihood = discriminant.log_likelihood(new, truth, SHRINKAGES)
    best = discriminant.calibrated(likelihood, SHRINKAGES)
    assert best.shrinkage >= 0.5, "the covariance has 9 directions of 60"
    by_shrinkage = likelihood.max(1).values
    assert by_shrinkage.argmax() == SHRINKAGES.index(best.shrinkage)
    assert by_shrinkage.max() > by_shrinkage[0] + 10, "which little shrinkage would overfit"


def test_without_a_second_moment_the_discriminant_is_that_of_shrinkage_one():
    x, labels = samples()
    x = normalise(x)
    full, plain = (FeatureSums.of(x, labels, CLASSES, second) for second in (True, False))
    back = FeatureSums.from_arrays(plain.to_arrays())
    assert back.second is None and FeatureSums.total([full, back]).second is None
    one, other = full.discriminant(1.0), plain.discriminant()
    torch.testing.assert_close(one.scores(x), other.scores(x), rtol=1e-4, atol=1e-4)
    sent = Discriminant.from_arrays(other.to_arrays())
    assert sent.covariance is None and torch.equal(sent.precision, other.precision)


def test_a_class_name_is_worth_some_samples_of_its_class():
    x, labels = samples()
    names = torch.randn(CLASSES + 1, SIZE, generator=torch.Generator().manual_seed(5))
    sums = FeatureSums.of(x, labels, CLASSES + 1)
    plain, anchored = sums.discriminant(), sums.discriminant(names=names, anchor=2.0)
    moved = names + (plain.means - names)[:CLASSES].mean(0)
    for c in range(CLASSES):
        count = float(sums.counts[c])
        torch.testing.assert_close(anchored.means[c], (count * plain.means[c] + 2 * moved[c]) / (count + 2))
    torch.testing.assert_close(anchored.means[CLASSES], moved[CLASSES])
    assert torch.equal(known(anchored.covariance), known(plain.covariance))


def test_discriminant_arrays_round_trip():
    x, labels = samples()
    made = replace(FeatureSums.of(x, labels, CLASSES).discriminant(), temperature=2.8)
    back = Discriminant.from_arrays(made.to_arrays())
    assert torch.equal(back.means, made.means)
    assert torch.equal(back.prior, made.prior)
    torch.testing.assert_close(back.precision, made.precision, rtol=1e-5, atol=1e-5)
    assert torch.equal(back.precision, back.precision.T)
    assert back.temperature == pytest.approx(2.8)
    again = Discriminant.from_arrays(back.to_arrays())
    assert torch.equal(again.precision, back.precision)
    assert again.temperature == back.temperature


def test_drawn_features_have_the_right_classes_means_and_covariance(generator):
    x, labels = samples(spread=1.0)
    discriminant = replace(
        FeatureSums.of(x, labels, CLASSES).discriminant(), prior=torch.tensor([0.1, 0.2, 0.3, 0.4])
    )
    drawn, classes = discriminant.draw(40_000, generator)
    covariance = torch.linalg.inv(discriminant.precision)
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() > 0.5, (
        "the covariance is nearly diagonal"
    )
    np.testing.assert_allclose(torch.bincount(classes) / 40_000, discriminant.prior, atol=0.01)
    for c in range(CLASSES):
        own = drawn[classes == c]
        torch.testing.assert_close(own.mean(0), discriminant.means[c], atol=0.15, rtol=0)
        torch.testing.assert_close(
            torch.cov(own.T), covariance, atol=0.08 * float(covariance.abs().max()), rtol=0
        )
    again, _ = discriminant.draw(40_000, torch.Generator().manual_seed(0))
    assert torch.equal(again, drawn)


# evidence


@pytest.fixture
def federation():
    """Everyone's discriminant, a client with two of the classes, its samples and others'."""
    x, labels = samples(spread=1.0)
    everyone = replace(FeatureSums.of(x, labels, CLASSES).discriminant(), temperature=2.0)
    own = (labels < 2).nonzero()[:40, 0]
    return everyone, x[own], labels[own], samples(60, spread=1.0, seed=7)


def ratio_by_hand(x, everyone, counts, sums, with_means=True):
    """The formula of `Evidence` with explicit exponentials, in float64."""
    q, mu, P, T = (
        everyone.prior.double(),
        everyone.means.double(),
        everyone.precision.double(),
        everyone.temperature,
    )
    own_means = (sums + MEAN_STRENGTH * mu) / (counts[:, None] + MEAN_STRENGTH) if with_means else mu
    p = (counts + q) / (counts.sum() + 1)
    values = [
        [[math.exp(-(row - m) @ P @ (row - m) / (2 * T)) for m in means] for means in (own_means, mu)]
        for row in x.double()
    ]
    e = torch.tensor(values, dtype=torch.float64)
    return ((p * e[:, 0]).sum(1).log() - (q * e[:, 1]).sum(1).log()).float()


@pytest.mark.parametrize("means", [True, False])
def test_the_evidence_is_its_formula(federation, means):
    everyone, x, labels, (other, _) = federation
    own = FeatureSums.of(x, labels, CLASSES)
    made = Evidence(everyone, own, means).log_ratio(other)
    assert made.std() > 0.1
    torch.testing.assert_close(
        made, ratio_by_hand(other, everyone, own.counts, own.sums, means), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("means", [True, False])
def test_leaving_one_out_is_computing_the_statistics_without_it(federation, means):
    everyone, x, labels, _ = federation
    lone = torch.tensor([3])  # the only sample of its class: left out, none remains
    x, labels = torch.cat([x, everyone.means[3:] + 0.5]), torch.cat([labels, lone])
    made = Evidence(everyone, FeatureSums.of(x, labels, CLASSES), means).log_ratio_left_out(x, labels)
    for row in range(len(x)):
        others = torch.arange(len(x)) != row
        without = Evidence(everyone, FeatureSums.of(x[others], labels[others], CLASSES), means)
        torch.testing.assert_close(made[row], without.log_ratio(x[row : row + 1])[0], atol=1e-3, rtol=1e-3)
    within = Evidence(everyone, FeatureSums.of(x, labels, CLASSES), means).log_ratio(x)
    assert (within > made).float().mean() > 0.8, "judged with itself in the sums, a sample looks more its own"


@pytest.mark.parametrize("means", [True, False])
def test_the_evidence_is_higher_on_own_than_on_foreign_data(federation, means):
    everyone, x, labels, (other, classes) = federation
    evidence = Evidence(everyone, FeatureSums.of(x, labels, CLASSES), means)
    own = evidence.log_ratio_left_out(x, labels)
    assert own.mean() > 0 > evidence.log_ratio(other[classes >= 2]).mean()
    assert own.mean() > evidence.log_ratio(other).mean() + 0.3


@pytest.mark.parametrize("left_out", [True, False])
def test_a_posterior_replaces_what_the_discriminant_says_of_the_label_counts(federation, left_out):
    everyone, x, labels, (other, classes) = federation
    own = FeatureSums.of(x, labels, CLASSES)

    def posterior(x):  # of the discriminant itself: then nothing changes
        return (everyone.scores(x) + everyone.prior.log()).log_softmax(1)

    def sure(x):  # one that knows the truth
        return torch.full((len(x), CLASSES), -20.0).scatter(1, classes[:, None], 0.0)

    def ratio(evidence):
        return evidence.log_ratio_left_out(x, labels) if left_out else evidence.log_ratio(other)

    torch.testing.assert_close(
        ratio(Evidence(everyone, own, posterior=posterior)), ratio(Evidence(everyone, own)), atol=1e-4, rtol=0
    )
    by_means, by_counts = Evidence(everyone, own), Evidence(everyone, own, means=False)
    made = Evidence(everyone, own, posterior=sure).log_ratio(other)
    expected = by_means.log_ratio(other) - by_counts.log_ratio(other)
    expected += (by_means.prior / everyone.prior)[classes].log()
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


def test_a_client_whose_classes_look_different_is_told_by_its_means_but_not_by_its_counts():
    x, labels = samples(spread=1.0)
    everyone = FeatureSums.of(x, labels, CLASSES).discriminant()
    shifted = x[:100] + 3.0
    own = FeatureSums.of(shifted, labels[:100], CLASSES)
    by_means, by_counts = Evidence(everyone, own), Evidence(everyone, own, means=False)
    gap = [
        float(each.log_ratio_left_out(shifted, labels[:100]).mean() - each.log_ratio(x[100:]).mean())
        for each in (by_means, by_counts)
    ]
    assert gap[0] > 1
    assert abs(gap[1]) < 0.2


def test_a_client_without_samples_has_no_evidence(federation):
    everyone, _, _, (other, _) = federation
    nobody = FeatureSums(
        torch.zeros(CLASSES).double(), torch.zeros(CLASSES, SIZE).double(), torch.zeros(SIZE, SIZE).double()
    )
    torch.testing.assert_close(
        Evidence(everyone, nobody).log_ratio(other), torch.zeros(60), atol=1e-4, rtol=0
    )


def test_the_mixed_prior_moves_from_everyones_to_the_clients():
    own, everyone = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.2, 0.3, 0.5])
    assert torch.equal(mixed_prior(own, everyone, 0.0), everyone)
    torch.testing.assert_close(mixed_prior(own, everyone, 1.0), torch.tensor([0.75, 0.25, 0.0]))
    for prior in (0.0, 0.3, 1.0):
        assert mixed_prior(own, everyone, prior).sum() == pytest.approx(1)


def test_the_posterior_mean_counts_everyones_shares_as_samples():
    own, everyone = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.2, 0.3, 0.5])
    torch.testing.assert_close(posterior_mean(own, everyone, 4), torch.tensor([3.8, 2.2, 2.0]) / 8)
    assert torch.equal(posterior_mean(torch.zeros(3), everyone, 1), everyone), "no samples of its own"


def test_a_second_moment_that_travelled_in_part_still_gives_a_usable_discriminant():
    """Two orthogonal classes and one eigenvector: the means imply more spread than the second moment has."""
    x = torch.cat([torch.eye(4)[:1].repeat(20, 1), torch.eye(4)[1:2].repeat(10, 1)]) * 2
    labels = torch.tensor([0] * 20 + [1] * 10)
    made = FeatureSums.from_arrays(FeatureSums.of(x, labels, 2).to_arrays(rank=1)).discriminant()
    assert torch.linalg.eigvalsh(made.precision.double()).min() > 0
    assert made.draw(8, torch.Generator().manual_seed(0))[0].isfinite().all()
    assert (made.scores(x).argmax(1) == labels).all()
