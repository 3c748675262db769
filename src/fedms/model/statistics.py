"""Feature statistics of a client or a federation: sums over samples.

They are the class counts n_c, the class feature sums s_c and the second moment S = sum x xᵀ. Clients' sums
add up, so the federation's are exact under any label skew. They give the linear discriminant (a classifier
without training: FedNCM, arXiv 2306.03937; Fed3R, arXiv 2402.01423) and the evidence of the gate.

Features are scaled to length sqrt(d) before they are summed (`normalise`), so that one temperature grid
suits every backbone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.model.discriminant import Discriminant


def normalise(features: Tensor) -> Tensor:
    """[n, d] -> the same directions with length sqrt(d)."""
    return F.normalize(features, dim=-1) * math.sqrt(features.shape[-1])


@dataclass(frozen=True)
class FeatureSums:
    """Sums over samples, in float64, so that the order of the clients changes no digit that matters."""

    counts: Tensor
    """[C]"""
    sums: Tensor
    """[C, d]"""
    second: Tensor | None
    """[d, d], symmetric; None where it is not known"""

    @classmethod
    def of(cls, x: Tensor, labels: Tensor, classes: int, second: bool = True) -> FeatureSums:
        """The sums of normalised features x [n, d] with labels [n], with S or without."""
        if x.device.type == "mps":  # which has no float64
            x, labels = x.cpu(), labels.cpu()
        x = x.double()
        counts = torch.bincount(labels, minlength=classes).double()
        sums = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, labels, x)
        return cls(counts, sums, x.T @ x if second else None)

    @classmethod
    def total(cls, parts: Iterable[FeatureSums]) -> FeatureSums:
        """The sums over the samples of all parts; S only where all know it."""
        first, *rest = parts
        for part in rest:
            second = None if first.second is None or part.second is None else first.second + part.second
            first = cls(first.counts + part.counts, first.sums + part.sums, second)
        return first

    @classmethod
    def estimated(cls, parts: Iterable[FeatureSums]) -> FeatureSums:
        """The sums over all parts, with S estimated from the differences between the parts' class means.

        A part's mean of n samples of a class lies around the class mean with the covariance of the class,
        divided by n (FedCOF, arXiv 2412.14326). The trace is known, since normalised features have one
        length. Where no two parts have samples of one class, the covariance is a multiple of the identity.
        """
        parts = list(parts)
        total = cls.total(parts)
        means = total.sums / total.counts[:, None].clamp_min(1)
        size = means.shape[1]
        within = torch.zeros(size, size, dtype=torch.float64)
        for part in parts:
            held = part.counts > 0
            counts = part.counts[held, None]
            away = (part.sums[held] / counts - means[held]) * counts.sqrt()
            within += away.T @ away
        between = (means * total.counts[:, None]).T @ means
        trace = float(total.counts.sum()) * size - float(between.trace())
        if float(within.trace()) <= 1e-9 * max(trace, 1e-9):
            within = torch.eye(size, dtype=torch.float64)
        return cls(total.counts, total.sums, between + within * (max(trace, 0.0) / float(within.trace())))

    def to_arrays(self, rank: int | None = None) -> dict[str, Tensor]:
        """The arrays that a client sends, in float32.

        The second moment is its upper triangle, or its `rank` largest eigenvectors and the mean of the other
        eigenvalues.
        """
        arrays = {"statistics.counts": self.counts.float(), "statistics.sums": self.sums.float()}
        if self.second is None:
            return arrays
        size = self.second.shape[0]
        if rank is None or rank >= size:
            rows, columns = torch.triu_indices(size, size)
            return arrays | {"statistics.second": self.second[rows, columns].float()}
        values, vectors = torch.linalg.eigh(self.second)
        rest = values[:-rank].mean().clamp_min(0)
        factor = vectors[:, -rank:] * (values[-rank:] - rest).clamp_min(0).sqrt()
        return arrays | {"statistics.factor": factor.float(), "statistics.rest": rest.float().reshape(1)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> FeatureSums:
        counts, sums = arrays["statistics.counts"].double(), arrays["statistics.sums"].double()
        size = sums.shape[1]
        if "statistics.factor" in arrays:
            factor = arrays["statistics.factor"].double()
            return cls(
                counts,
                sums,
                factor @ factor.T + arrays["statistics.rest"].double() * torch.eye(size, dtype=torch.float64),
            )
        if "statistics.second" not in arrays:
            return cls(counts, sums, None)
        rows, columns = torch.triu_indices(size, size)
        second = torch.zeros(size, size, dtype=torch.float64)
        second[rows, columns] = arrays["statistics.second"].double()
        return cls(counts, sums, second + second.triu(1).T)

    def discriminant(
        self, shrinkage: float | None = None, names: Tensor | None = None, anchor: float = 0.0
    ) -> Discriminant:
        """The linear discriminant of these sums, at temperature 1.

        Args:
            shrinkage: the identity's share of the covariance. Default: d / (d + n), at least 0.05; 1 without
                a second moment.
            names: normalised embeddings of the class names, [C, d].
            anchor: each name counts as this many samples of its class. Names are moved by the mean difference
                between class means and names, since texts and names lie in different places.
        """
        n, size = float(self.counts.sum()), self.sums.shape[1]
        held = self.counts > 0
        means = self.sums / self.counts[:, None].clamp_min(1e-9)
        means[~held] = self.sums.sum(0) / max(n, 1)
        covariance, spread = None, n * size
        if self.second is not None:
            spread = float(self.second.diagonal().sum())
            covariance = (self.second - (means * self.counts[:, None]).T @ means) / max(n, 1)
            values, vectors = torch.linalg.eigh(covariance)
            if values[0] < 0:  # a second moment of limited rank can be smaller than the means imply
                covariance = (vectors * values.clamp_min(0)) @ vectors.T
        between = float((means.square().sum(1) * self.counts).sum())
        variance = max((spread - between) / max(n, 1) / size, 1e-6)
        if names is not None and anchor > 0:
            moved = names.double() + (means[held] - names.double()[held]).mean(0)
            means = (self.sums + anchor * moved) / (self.counts[:, None] + anchor)
        prior = self.counts.clamp_min(0.5) / self.counts.clamp_min(0.5).sum()
        if covariance is None:
            return Discriminant(means.float(), None, variance, prior.float())
        share = max(0.05, size / (size + n)) if shrinkage is None else shrinkage
        return Discriminant(means.float(), covariance.float(), variance, prior.float(), share)
