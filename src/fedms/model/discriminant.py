"""The linear discriminant of a federation's sums: a classifier without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3, 16.0, 22.6, 32.0)
"""Grid of temperatures; validation likelihood selects one."""
LEVEL = 0.01
"""Log-likelihoods of all samples together, in nats, that are no further apart are level."""
SHRINKAGES = (0.05, 0.2, 0.5, 0.8, 0.9, 1.0)
"""Grid of shrinkages; validation likelihood selects one."""


@dataclass(frozen=True)
class Discriminant:
    """Gaussian classes with one covariance.

    log p(c | x) = log q_c + (xᵀ P mu_c - mu_cᵀ P mu_c / 2) / T + const

    P is the inverse of (1 - s) Sigma + s v I, with the covariance Sigma within classes, v the mean of its
    diagonal, and the shrinkage s.
    """

    means: Tensor
    """mu, [C, d]"""
    covariance: Tensor | None
    """Sigma, [d, d]; None where only its diagonal's mean is known, and s is 1"""
    variance: float
    """v"""
    prior: Tensor
    """q, [C]"""
    shrinkage: float = 1.0
    """s"""
    temperature: float = 1.0
    """T"""

    @cached_property
    def precision(self) -> Tensor:
        """P, [d, d]"""
        size = self.means.shape[1]
        shrunk = self.shrinkage * self.variance * torch.eye(size, dtype=torch.float64)
        if self.covariance is not None:
            shrunk += (1 - self.shrinkage) * self.covariance.double()
        return torch.cholesky_inverse(torch.linalg.cholesky(shrunk)).float()

    def scores(self, x: Tensor, means: Tensor | None = None) -> Tensor:
        """(xᵀ P m_c - m_cᵀ P m_c / 2) / T for features x [n, d] -> [n, C], without prior."""
        means = self.means if means is None else means
        projected = means @ self.precision
        return (x @ projected.T - 0.5 * (projected * means).sum(1)) / self.temperature

    def log_likelihood(self, x: Tensor, labels: Tensor, shrinkages: Sequence[float]) -> Tensor:
        """Sum of log p(label | x) at each of these shrinkages and each temperature of the grid, [s, T]."""
        return self.log_likelihoods(x, labels, shrinkages).sum(-1)

    def log_likelihoods(self, x: Tensor, labels: Tensor, shrinkages: Sequence[float]) -> Tensor:
        """log p(label | x) of each sample, [s, T, n]."""
        found = []
        for shrinkage in shrinkages:
            scores = replace(self, shrinkage=shrinkage, temperature=1.0).scores(x)
            logits = (scores / t + self.prior.log() for t in TEMPERATURES)
            found.append(torch.stack([-F.cross_entropy(each, labels, reduction="none") for each in logits]))
        return torch.stack(found)

    def calibrated(self, log_likelihood: Tensor, shrinkages: Sequence[float]) -> Discriminant:
        """The same discriminant at the shrinkage and temperature of the best log-likelihood, [s, T].

        Of candidates that are level with the best one, it takes the most cautious: the last in both grids.
        """
        level = (log_likelihood >= log_likelihood.max() - LEVEL).flatten().nonzero()
        row, column = divmod(int(level[-1]), len(TEMPERATURES))
        return replace(self, shrinkage=shrinkages[row], temperature=TEMPERATURES[column])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features [count, d] and labels [count] from the federation's class-conditional Gaussians."""
        labels = torch.multinomial(self.prior, count, replacement=True, generator=generator)
        # x = L^-T e has covariance (L Lᵀ)^-1 = P^-1, with L the Cholesky factor of the precision
        noise = torch.randn(count, self.means.shape[1], generator=generator)
        factor = torch.linalg.cholesky(self.precision.double())
        spread = torch.linalg.solve_triangular(factor.T, noise.double().T, upper=True).T.float()
        return self.means[labels] + spread, labels

    def to_arrays(self) -> dict[str, Tensor]:
        """As it is sent."""
        numbers = [self.variance, self.shrinkage, self.temperature]
        arrays = {
            "discriminant.means": self.means,
            "discriminant.prior": self.prior,
            "discriminant.numbers": torch.tensor(numbers, dtype=torch.float64),
        }
        if self.covariance is not None:
            rows, columns = torch.triu_indices(*self.covariance.shape)
            arrays["discriminant.covariance"] = self.covariance[rows, columns]
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> Discriminant:
        """What `to_arrays` wrote."""
        means, covariance = arrays["discriminant.means"], None
        if "discriminant.covariance" in arrays:
            rows, columns = torch.triu_indices(means.shape[1], means.shape[1])
            covariance = torch.zeros(means.shape[1], means.shape[1])
            covariance[rows, columns] = arrays["discriminant.covariance"]
            covariance = covariance + covariance.triu(1).T
        variance, shrinkage, temperature = arrays["discriminant.numbers"].tolist()
        return cls(means, covariance, variance, arrays["discriminant.prior"], shrinkage, temperature)


def posterior_mean(own: Tensor, everyone: Tensor, samples: float) -> Tensor:
    """Label prior of a client with label counts `own`, where everyone's shares count as `samples`, [C]."""
    return (own + samples * everyone) / (own.sum() + samples)


def mixed_prior(own: Tensor, everyone: Tensor, prior: float) -> Tensor:
    """Label prior of a client that meets own data with probability `prior`, else everyone's, [C]."""
    return prior * own / own.sum().clamp_min(1) + (1 - prior) * everyone


def label_shift(own: Tensor, everyone: Tensor, prior: float) -> Tensor:
    """Shift of the logits from everyone's label prior to the mixed prior, [C]."""
    return mixed_prior(own, everyone, prior).log() - everyone.log()
