"""The linear discriminant of a federation's sums: a classifier without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3, 16.0, 22.6, 32.0)
"""Grid of temperatures; validation likelihood selects one."""


@dataclass(frozen=True)
class Discriminant:
    """Gaussian classes with one covariance.

    log p(c | x) = log q_c + (xᵀ P mu_c - mu_cᵀ P mu_c / 2) / T + const
    """

    means: Tensor
    """mu, [C, d]"""
    precision: Tensor
    """P, [d, d]: inverse of the covariance within classes"""
    prior: Tensor
    """q, [C]"""
    temperature: float = 1.0
    """T"""

    def scores(self, x: Tensor, means: Tensor | None = None) -> Tensor:
        """(xᵀ P m_c - m_cᵀ P m_c / 2) / T for features x [n, d] -> [n, C], without prior."""
        means = self.means if means is None else means
        projected = means @ self.precision
        return (x @ projected.T - 0.5 * (projected * means).sum(1)) / self.temperature

    def log_likelihood(self, x: Tensor, labels: Tensor) -> Tensor:
        """Sum of log p(label | x) at every temperature of the grid, [len(TEMPERATURES)]."""
        scores = replace(self, temperature=1.0).scores(x)
        logits = (scores / t + self.prior.log() for t in TEMPERATURES)
        return torch.stack([-F.cross_entropy(each, labels, reduction="sum") for each in logits])

    def calibrated(self, log_likelihood: Tensor) -> Discriminant:
        """The same discriminant at the temperature with the best log-likelihood, [len(TEMPERATURES)]."""
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
        return cls(
            means, precision, arrays["discriminant.prior"], float(arrays["discriminant.temperature"][0])
        )


def mixed_prior(own: Tensor, everyone: Tensor, prior: float) -> Tensor:
    """Label prior of a client that meets own data with probability `prior`, else everyone's, [C]."""
    return prior * own / own.sum().clamp_min(1) + (1 - prior) * everyone


def label_shift(own: Tensor, everyone: Tensor, prior: float) -> Tensor:
    """Shift of the logits from everyone's label prior to the mixed prior, [C]."""
    return mixed_prior(own, everyone, prior).log() - everyone.log()
