"""The evidence for `own` against `everyone`, from feature statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.model.arrays import Arrays
from fedms.model.discriminant import Discriminant, posterior_mean
from fedms.model.statistics import FeatureSums

MEAN_STRENGTH = 5.0
"""Weight of the federation's class mean in a client's class mean, in samples."""

Posterior = Callable[[Tensor], Tensor]
"""From features [n, d] to log p(c | x), [n, C]."""


class Evidence:
    """log r(x): the log-ratio of the likelihoods of x under this client's and everyone's mixture of classes.

        m_kc = (s_kc + a mu_c) / (n_kc + a),   p_k(c) = (n_kc + q_c) / (N_k + 1),   a = MEAN_STRENGTH
        log r = log sum_c p_k(c) e(x; m_kc) - log sum_c q_c e(x; mu_c),   e(x; m) = exp(-(x-m)ᵀ P (x-m) / 2T)

    The term xᵀ P x cancels. With `means=False` both mixtures use mu_c, so only the label counts matter.

    With a posterior p_G, it says in place of the discriminant what the label counts mean:

        log r' = log r - log r_counts + log sum_c p_G(c | x) p_k(c) / q_c,

    with log r_counts the log r of `means=False`. So log r - log r_counts is what the client's own class means
    add to its label counts.
    """

    def __init__(
        self,
        everyone: Discriminant,
        own: FeatureSums,
        means: bool = True,
        posterior: Posterior | None = None,
    ) -> None:
        self.everyone = everyone
        self.posterior = posterior
        self.counts = own.counts.float()
        self.sums = own.sums.float()
        self.means = (
            (self.sums + MEAN_STRENGTH * everyone.means) / (self.counts[:, None] + MEAN_STRENGTH)
            if means
            else everyone.means
        )
        self.own_means = means
        self.prior = posterior_mean(self.counts, everyone.prior, 1)

    def layers(self) -> Arrays:
        """The same for samples outside the client's sums, as linear layers (`LinearEvidence`)."""
        own = _layer("evidence.own", self.everyone, self.means, self.prior)
        if self.posterior is None:
            return own | _layer("evidence.everyone", self.everyone, self.everyone.means, self.everyone.prior)
        counts = _layer("evidence.counts", self.everyone, self.everyone.means, self.prior)
        return own | counts | {"evidence.shift": self.prior.log() - self.everyone.prior.log()}

    def log_ratio(self, x: Tensor) -> Tensor:
        """[n, d] -> [n], for samples outside the client's sums."""
        return self._log_ratio(x, self.everyone.scores(x, self.means), self.prior.log())

    def log_ratio_left_out(self, x: Tensor, labels: Tensor) -> Tensor:
        """[n, d], [n] -> [n], for samples in the client's sums: each by the sums without that sample."""
        rows = torch.arange(len(x))
        others = self.counts.repeat(len(x), 1)
        others[rows, labels] -= 1
        prior = (others + self.everyone.prior) / (self.counts.sum().clamp_min(1))
        scores = self.everyone.scores(x, self.means)
        if self.own_means:
            left = (self.sums[labels] - x + MEAN_STRENGTH * self.everyone.means[labels]) / (
                others[rows, labels] + MEAN_STRENGTH
            )[:, None]
            projected = left @ self.everyone.precision
            scores[rows, labels] = (projected * (x - 0.5 * left)).sum(1) / self.everyone.temperature
        return self._log_ratio(x, scores, prior.clamp_min(1e-12).log())

    def _log_ratio(self, x: Tensor, own: Tensor, log_prior: Tensor) -> Tensor:
        """From scores [n, C] by the client's means, and its label prior [C] or [n, C]."""
        everyone = self.everyone.prior.log()
        if self.posterior is None:
            return torch.logsumexp(own + log_prior, 1) - torch.logsumexp(
                self.everyone.scores(x) + everyone, 1
            )
        by_counts = torch.logsumexp(self.everyone.scores(x) + log_prior, 1)
        by_posterior = torch.logsumexp(self.posterior(x) + log_prior - everyone, 1)
        return torch.logsumexp(own + log_prior, 1) - by_counts + by_posterior


class LinearEvidence:
    """`Evidence` as linear layers: without the client's sums, from which the layers were made."""

    def __init__(self, arrays: Mapping[str, Tensor], posterior: Posterior | None = None) -> None:
        self.arrays = {name: array for name, array in arrays.items() if name.startswith("evidence.")}
        self.posterior = posterior

    def layers(self) -> Arrays:
        """The linear layers."""
        return self.arrays

    def log_ratio(self, x: Tensor) -> Tensor:
        """[n, d] -> [n]"""
        own = self._score("evidence.own", x)
        if self.posterior is None:
            return own - self._score("evidence.everyone", x)
        known = torch.logsumexp(self.posterior(x) + self.arrays["evidence.shift"], 1)
        return own - self._score("evidence.counts", x) + known

    def _score(self, name: str, x: Tensor) -> Tensor:
        return torch.logsumexp(F.linear(x, self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]), 1)


def _layer(name: str, everyone: Discriminant, means: Tensor, prior: Tensor) -> Arrays:
    """The discriminant's scores with these means, and the log of a label prior, as one linear layer."""
    projected = means @ everyone.precision / everyone.temperature
    return {f"{name}.weight": projected, f"{name}.bias": prior.log() - 0.5 * (projected * means).sum(1)}
