"""Class means from feature sums with noise.

The noise's deviation is public. So what it adds to squared lengths can be subtracted, and each class mean is
drawn to the embedding of its class name as far as the noise asks for. Nothing but the sums is read, so the
discriminant is as private as they are, and no validation data choose anything in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.model.discriminant import Discriminant
from fedms.model.heads import NEAREST_SCALE
from fedms.model.statistics import FeatureSums

CAUTION = 1 / 3
"""Part of the weight of names that has the least squared error. Means that must tell classes apart are best
with less (measured on validation data: embedded corpus, and 3000 messages of BANKING77)."""
LEAST_LENGTH, MOST_LENGTH = 0.05, 0.95
"""Bounds of the squared length of a class mean, where a feature has length 1."""
SMALLEST_CLASS = 0.05
"""Fewest samples of a class, as a part of the mean over classes."""


@dataclass(frozen=True)
class NoisySums(FeatureSums):
    """Counts and sums over clients with Gaussian noise on each number."""

    counts_deviation: float
    sums_deviation: float

    def shrunk_counts(self) -> Tensor:
        """The counts, drawn to their mean as far as noise explains their spread, [C]; all above 0."""
        mean = self.counts.mean().clamp_min(1)
        spread = float((self.counts - mean).square().mean())
        kept = max(0.0, 1 - self.counts_deviation**2 / spread) if spread else 0.0
        return (mean + kept * (self.counts - mean)).clamp_min(SMALLEST_CLASS * float(mean))

    def discriminant(
        self, shrinkage: float | None = None, names: Tensor | None = None, anchor: float = 0.0
    ) -> Discriminant:
        """Class means of one length with round classes around them: the nearest by the cosine.

        A name counts as `anchor` samples; with 0 as many as empirical Bayes finds, times `CAUTION`. The
        temperature makes the scale of the cosine `NEAREST_SCALE`. There is no covariance to shrink.
        """
        classes, size = self.sums.shape
        sums, noise = self.sums / math.sqrt(size), self.sums_deviation / math.sqrt(size)
        counts = self.shrunk_counts()
        samples, squares = float(counts.sum()), float(counts.square().sum())
        # the expected squared norm is sum n² |mean|² + n (1 - |mean|²), and the noise's
        length = float(sums.square().sum()) - classes * size * noise**2 - samples
        length = min(max(length / max(squares - samples, 1.0), LEAST_LENGTH), MOST_LENGTH)
        means = sums
        if names is not None:
            named, within = F.normalize(names.double(), dim=1), (1 - length) / size
            away = float((sums - counts[:, None] * named).square().sum()) / size
            away = max((away - classes * noise**2 - samples * within) / squares, 1e-3 / size)
            found = CAUTION * (noise**2 + counts * within) / (counts * away)
            weight = torch.full_like(counts, anchor) if anchor else found
            means = sums + weight[:, None] * named
        means = F.normalize(means, dim=1) * math.sqrt(length * size)
        variance = 1 - length
        temperature = size * math.sqrt(length) / variance / NEAREST_SCALE
        return Discriminant(means.float(), None, variance, (counts / samples).float(), 1.0, temperature)
