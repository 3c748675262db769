"""What one client predicts with: its experts, its gate, and what it knows of everyone's statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.config import Config
from fedms.data.features import Samples
from fedms.federation.compute import Compute
from fedms.federation.method import Method
from fedms.model import gate as gates
from fedms.model.expert import Arrays, Expert
from fedms.model.mixture import mix
from fedms.model.statistics import Discriminant, Evidence, Statistics, label_shift, mixed_prior

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
class Judged:
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


class Personal:
    """One client's parts, as arrays that can be saved and loaded.

    Names: `global/...` and `local/...` for the experts, `gate....`, `discriminant....`, `own.counts`, `own.sums`.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        method: Method,
        config: Config,
        network_kept: bool = True,
        evidence_scales: Sequence[float] = EVEN,
    ) -> None:
        self.arrays = dict(arrays)
        self.method = method
        self.config = config
        self.network_kept = network_kept
        self.evidence_scales = tuple(evidence_scales)
        scale = config.lora.alpha / config.lora.rank
        self.experts = {
            name: Expert(parts, scale) for name in ("global", "local") if (parts := strip(arrays, f"{name}/")) and "head.weight" in parts
        }

    @property
    def global_expert(self) -> Expert | None:
        return self.experts.get("global")

    @property
    def local_expert(self) -> Expert | None:
        """The client's own; before it has trained one, the global."""
        return self.experts.get("local", self.global_expert)

    @property
    def discriminant(self) -> Discriminant:
        return Discriminant.from_arrays(self.arrays)

    @property
    def evidence(self) -> Evidence | None:
        """How to weigh a sample by statistics; None where the gate has no such evidence."""
        gate = self.config.gate
        if self.method.gate != "learned" or gate.objective == "likelihood" or gate.evidence == "none":
            return None
        own = Statistics(self.arrays["own.counts"], self.arrays["own.sums"], torch.empty(0))
        return Evidence(self.discriminant, own, means=gate.evidence == "statistics")

    def gate_features(self, compute: Compute, samples: Samples, boundary: int) -> Tensor:
        """What the gate reads, [n, d]."""
        expert = self.global_expert if self.config.gate.features == "global" else None
        return compute.frozen_outputs(self.config.gate.features, expert, samples, boundary).features

    def judge(self, compute: Compute, samples: Samples, boundary: int) -> Judged:
        """Run whatever predicts over the samples."""
        predicts, mix_on, method = self.method.predicts, self.config.mixture.on, self.method
        priors = (self.arrays["own.counts"].float(), self.everyone_prior()) if method.label_prior else None
        if predicts == "statistics":
            x = compute.frozen_outputs("backbone", None, samples, boundary).features
            return Judged(predicts, mix_on, self.discriminant.scores(x), label_priors=priors)
        if predicts == "blend":
            weight = self._likeness(compute, samples, boundary)
            return Judged(predicts, mix_on, local_logits=compute.outputs(self._blend(weight), samples, boundary).logits, weight=weight)
        expert = self.global_expert if predicts != "local" else None
        world = compute.frozen_outputs("global", expert, samples, boundary).logits if expert else None
        own = compute.outputs(self.local_expert, samples, boundary).logits if predicts != "global" else None
        if predicts != "mixture" or method.gate == "constant":
            return Judged(predicts, mix_on, world, own, label_priors=priors)
        if method.gate == "counts":
            assert world is not None
            return Judged(predicts, mix_on, world, own, gates.count_evidence(world, self.arrays["own.counts"]))
        x = self.gate_features(compute, samples, boundary)
        evidence = self.evidence
        log_ratio = evidence.log_ratio(x) if evidence else torch.zeros(len(x))
        if self.network_kept:
            log_ratio = log_ratio + gates.delta(self.arrays, x).detach()
        return Judged(predicts, mix_on, world, own, log_ratio, self.evidence_scales)

    def everyone_prior(self) -> Tensor:
        """Everyone's label prior [C], as the sums say it; uniform where none travelled."""
        counts = self.arrays["own.counts"]
        uniform = torch.full((len(counts),), 1 / len(counts))
        return self.arrays.get("discriminant.prior", self.arrays.get("everyone.prior", uniform))

    def _likeness(self, compute: Compute, samples: Samples, boundary: int) -> Tensor:
        """Mean cosine of each sample's frozen feature to some of the client's own, at least 0, [n] (FedDPA, arXiv 2403.19211)."""
        x = compute.frozen_outputs("backbone", None, samples, boundary).features
        cosine = F.normalize(x, dim=1) @ F.normalize(self.arrays["own.references"], dim=1).T
        return cosine.mean(1).clamp(0, 1)

    def _blend(self, weight: Tensor) -> Expert:
        """Both experts as one, whose pairs and heads are weighed sample by sample."""
        local, world = self.local_expert, self.global_expert
        assert local is not None and world is not None
        return Expert(local.arrays | prefixed(world.arrays, "beside."), local.scale, weight)

    def facts(self) -> dict[str, Any]:
        """What of the model is not an array."""
        return {"network_kept": self.network_kept, "evidence_scales": self.evidence_scales}


def strip(arrays: Mapping[str, Tensor], prefix: str) -> Arrays:
    """The arrays under a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def prefixed(arrays: Mapping[str, Tensor], prefix: str) -> Arrays:
    return {f"{prefix}{name}": array for name, array in arrays.items()}
