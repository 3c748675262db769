"""What a client's parts say of samples, and the predictions that follow at any prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.config import Config
from fedms.federation.method import Method
from fedms.model import gate as gates
from fedms.model.discriminant import label_shift, mixed_prior
from fedms.model.gate import mix

PRIORS = tuple(step / 10 for step in range(11))
"""Where the frontier is measured."""
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
"""Grid from which validation likelihood picks the scale of the gate's evidence, for each prior between 0 and 1."""
INTERPOLATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Grid from which validation likelihood picks how far the local experts go from where they started to where training took them."""
EVEN = (1.0,) * (len(PRIORS) - 2)
"""Evidence that is taken as it is, whatever the prior."""


def scale_at(scales: Sequence[float], prior: float) -> float:
    """The scale for any prior, from those for the priors between 0 and 1 where the frontier is measured."""
    return float(np.interp(prior, PRIORS[1:-1], scales))


@dataclass(frozen=True)
class ClientOutputs:
    """What a client's parts say of some samples; predictions at any prior follow without another pass."""

    predicts: str
    mix_on: str
    global_logits: Tensor | None = None
    """[n, C]; for `statistics`, the discriminant's scores without any label prior"""
    local_logits: Tensor | None = None
    """[n, C]"""
    evidence: Tensor | None = None
    """log r + delta, [n]; None where the weight is a constant"""
    scales: Sequence[float] = EVEN
    """How far the evidence is trusted, at each prior between 0 and 1"""
    label_priors: tuple[Tensor, Tensor] | None = None
    """The client's label counts and everyone's label prior, [C] each, where the prior moves them"""
    weight: Tensor | None = None
    """g_L of a blend, [n], which no prior moves"""

    def local_weight(self, prior: float) -> Tensor:
        """g_L, [n]"""
        if self.weight is not None:
            return self.weight
        assert self.local_logits is not None
        if self.evidence is None:
            return torch.full((len(self.local_logits),), prior)
        return gates.local_weight(scale_at(self.scales, prior) * self.evidence, prior)

    def log_probabilities(self, prior: float) -> Tensor:
        """[n, C]"""
        if self.predicts == "mixture":
            assert self.global_logits is not None and self.local_logits is not None
            return mix(self.global_logits, self.local_logits, self.local_weight(prior), self.mix_on)
        logits = self.local_logits if self.predicts in ("local", "blend") else self.global_logits
        assert logits is not None
        if self.label_priors is not None:
            counts, everyone = self.label_priors
            if self.predicts == "global":  # which has everyone's in it
                logits = logits + label_shift(counts, everyone, prior)
            else:
                logits = logits + mixed_prior(counts, everyone, prior).log()
        return F.log_softmax(logits, dim=1)

    def accuracy(self, labels: Tensor, prior: float) -> float:
        return float((self.log_probabilities(prior).argmax(1) == labels).float().mean())


def gate_reads_statistics(method: Method, config: Config) -> bool:
    """Whether the gate stands on the federation's statistics: it is learned to tell own from everyone's."""
    return method.gate == "learned" and config.gate.objective == "own-or-everyone"
