"""What a federation can know from sums alone.

A client's feature statistics are its class counts n_c, class feature sums s_c and second moment S = sum x xᵀ. They add
up, so the federation's are exact under any label skew. From them come the linear discriminant (a classifier without
training: FedNCM, arXiv 2306.03937; Fed3R, arXiv 2402.01423) and the evidence that the gate weighs.

Features are scaled to length sqrt(d) before they are summed (`normalise`), so one temperature serves every backbone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3, 16.0, 22.6, 32.0)
"""Grid from which validation likelihood picks the discriminant's temperature."""

MEAN_STRENGTH = 5.0
"""How many samples' worth the federation's class mean counts in a client's own."""


def normalise(features: Tensor) -> Tensor:
    """[n, d] -> the same directions with length sqrt(d)."""
    return F.normalize(features, dim=-1) * math.sqrt(features.shape[-1])


@dataclass(frozen=True)
class Statistics:
    """Sums over samples; float64, so that adding clients in name order loses nothing that matters."""

    counts: Tensor
    """[C]"""
    sums: Tensor
    """[C, d]"""
    second: Tensor
    """[d, d], symmetric"""

    @classmethod
    def of(cls, x: Tensor, labels: Tensor, classes: int) -> Statistics:
        """The sums of normalised features x [n, d] with labels [n]."""
        x = x.double()
        counts = torch.bincount(labels, minlength=classes).double()
        sums = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, labels, x)
        return cls(counts, sums, x.T @ x)

    @classmethod
    def total(cls, parts: Iterable[Statistics]) -> Statistics:
        first, *rest = parts
        for part in rest:
            first = cls(first.counts + part.counts, first.sums + part.sums, first.second + part.second)
        return first

    def to_arrays(self, rank: int | None = None) -> dict[str, Tensor]:
        """What travels, float32: the upper triangle of the second moment, or `rank` eigenvectors and the mean of the rest."""
        arrays = {"statistics.counts": self.counts.float(), "statistics.sums": self.sums.float()}
        size = self.second.shape[0]
        if rank is None or rank >= size:
            rows, columns = torch.triu_indices(size, size)
            return arrays | {"statistics.second": self.second[rows, columns].float()}
        values, vectors = torch.linalg.eigh(self.second)
        rest = values[:-rank].mean().clamp_min(0)
        factor = vectors[:, -rank:] * (values[-rank:] - rest).clamp_min(0).sqrt()
        return arrays | {"statistics.factor": factor.float(), "statistics.rest": rest.float().reshape(1)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> Statistics:
        counts, sums = arrays["statistics.counts"].double(), arrays["statistics.sums"].double()
        size = sums.shape[1]
        if "statistics.factor" in arrays:
            factor = arrays["statistics.factor"].double()
            return cls(counts, sums, factor @ factor.T + arrays["statistics.rest"].double() * torch.eye(size, dtype=torch.float64))
        rows, columns = torch.triu_indices(size, size)
        second = torch.zeros(size, size, dtype=torch.float64)
        second[rows, columns] = arrays["statistics.second"].double()
        return cls(counts, sums, second + second.triu(1).T)

    def discriminant(self, shrinkage: float | None = None) -> Discriminant:
        """The linear discriminant of these sums; `shrinkage` is the identity's share in the covariance."""
        n, size = float(self.counts.sum()), self.sums.shape[1]
        counts = self.counts[:, None].clamp_min(1e-9)
        means = torch.where(self.counts[:, None] > 0, self.sums / counts, self.sums.sum(0) / max(n, 1))
        covariance = (self.second - (means * self.counts[:, None]).T @ means) / max(n, 1)
        values, vectors = torch.linalg.eigh(covariance)
        if values[0] < 0:  # a second moment that travelled in part can fall short of the means
            covariance = (vectors * values.clamp_min(0)) @ vectors.T
        share = shrinkage if shrinkage is not None else max(0.05, size / (size + n))
        isotropic = covariance.diagonal().mean().clamp_min(1e-6) * torch.eye(size, dtype=torch.float64)
        covariance = (1 - share) * covariance + share * isotropic
        prior = self.counts.clamp_min(0.5) / self.counts.clamp_min(0.5).sum()
        return Discriminant(means.float(), torch.linalg.inv(covariance).float(), prior.float())


@dataclass(frozen=True)
class Discriminant:
    """Gaussian classes of one covariance: log p(c | x) = log q_c + (xᵀ P mu_c - mu_cᵀ P mu_c / 2) / T + const."""

    means: Tensor
    """mu, [C, d]"""
    precision: Tensor
    """P, [d, d]: inverse of the covariance within classes"""
    prior: Tensor
    """q, [C]"""
    temperature: float = 1.0
    """T"""

    def scores(self, x: Tensor, means: Tensor | None = None) -> Tensor:
        """(xᵀ P m_c - m_cᵀ P m_c / 2) / T for features x [n, d] -> [n, C], without any prior."""
        means = self.means if means is None else means
        projected = means @ self.precision
        return (x @ projected.T - 0.5 * (projected * means).sum(1)) / self.temperature

    def log_likelihood(self, x: Tensor, labels: Tensor) -> Tensor:
        """Sum of log p(label | x) at every temperature of the grid, [len(TEMPERATURES)]."""
        scores = replace(self, temperature=1.0).scores(x)
        logits = (scores / t + self.prior.log() for t in TEMPERATURES)
        return torch.stack([-F.cross_entropy(each, labels, reduction="sum") for each in logits])

    def calibrated(self, log_likelihood: Tensor) -> Discriminant:
        """The same at the temperature whose log-likelihood, [len(TEMPERATURES)], is best."""
        return replace(self, temperature=TEMPERATURES[int(log_likelihood.argmax())])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features [count, d] and labels [count] from the federation's class-conditional Gaussians."""
        labels = torch.multinomial(self.prior, count, replacement=True, generator=generator)
        # x = L^-T e has covariance (L Lᵀ)^-1 = P^-1, with L the Cholesky factor of the precision
        noise = torch.randn(count, self.means.shape[1], generator=generator)
        factor = torch.linalg.cholesky(self.precision.double())
        spread = torch.linalg.solve_triangular(factor.T, noise.double().T, upper=True).T.float()
        return self.means[labels] + spread, labels

    def to_arrays(self) -> dict[str, Tensor]:
        rows, columns = torch.triu_indices(*self.precision.shape)
        return {
            "discriminant.means": self.means,
            "discriminant.precision": self.precision[rows, columns],
            "discriminant.prior": self.prior,
            "discriminant.temperature": torch.tensor([self.temperature], dtype=torch.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> Discriminant:
        means = arrays["discriminant.means"]
        rows, columns = torch.triu_indices(means.shape[1], means.shape[1])
        precision = torch.zeros(means.shape[1], means.shape[1])
        precision[rows, columns] = arrays["discriminant.precision"]
        precision = precision + precision.triu(1).T
        return cls(means, precision, arrays["discriminant.prior"], float(arrays["discriminant.temperature"][0]))


def mixed_prior(own: Tensor, everyone: Tensor, prior: float) -> Tensor:
    """Label prior of a client that meets its own kind of data with probability `prior`, [C]."""
    return prior * own / own.sum().clamp_min(1) + (1 - prior) * everyone


def label_shift(own: Tensor, everyone: Tensor, prior: float) -> Tensor:
    """What the mixed prior adds to the logits of a model that has everyone's in it, [C]."""
    return mixed_prior(own, everyone, prior).log() - everyone.log()


class Evidence:
    """log r(x): how much likelier x is under this client's mixture of classes than under everybody's.

        m_kc = (s_kc + a mu_c) / (n_kc + a),   p_k(c) = (n_kc + q_c) / (N_k + 1),   a = MEAN_STRENGTH
        log r = log sum_c p_k(c) e(x; m_kc) - log sum_c q_c e(x; mu_c),   e(x; m) = exp(-(x-m)ᵀ P (x-m) / 2T)

    The term xᵀ P x cancels. With `means=False` both mixtures use mu_c, so only the label counts speak.
    """

    def __init__(self, everyone: Discriminant, own: Statistics, means: bool = True) -> None:
        self.everyone = everyone
        self.counts = own.counts.float()
        self.sums = own.sums.float()
        self.means = (self.sums + MEAN_STRENGTH * everyone.means) / (self.counts[:, None] + MEAN_STRENGTH) if means else everyone.means
        self.own_means = means
        self.prior = (self.counts + everyone.prior) / (self.counts.sum() + 1)

    def log_ratio(self, x: Tensor) -> Tensor:
        """[n, d] -> [n], for samples that are not in the client's sums."""
        return torch.logsumexp(self.everyone.scores(x, self.means) + self.prior.log(), 1) - self._everyone(x)

    def log_ratio_left_out(self, x: Tensor, labels: Tensor) -> Tensor:
        """[n, d], [n] -> [n], for samples that are in the client's sums: each is judged by the sums without it."""
        rows = torch.arange(len(x))
        others = self.counts.repeat(len(x), 1)
        others[rows, labels] -= 1
        prior = (others + self.everyone.prior) / (self.counts.sum().clamp_min(1))
        scores = self.everyone.scores(x, self.means)
        if self.own_means:
            left = (self.sums[labels] - x + MEAN_STRENGTH * self.everyone.means[labels]) / (others[rows, labels] + MEAN_STRENGTH)[:, None]
            projected = left @ self.everyone.precision
            scores[rows, labels] = (projected * (x - 0.5 * left)).sum(1) / self.everyone.temperature
        return torch.logsumexp(scores + prior.clamp_min(1e-12).log(), 1) - self._everyone(x)

    def _everyone(self, x: Tensor) -> Tensor:
        return torch.logsumexp(self.everyone.scores(x) + self.everyone.prior.log(), 1)
