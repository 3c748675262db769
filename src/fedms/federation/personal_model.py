"""What one client predicts with: its experts, its gate, and what it knows of everyone's statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.config import Config
from fedms.data.federated import Samples
from fedms.federation.method import Method
from fedms.federation.prediction import EVEN, ClientOutputs
from fedms.model import gate as gates
from fedms.model.arrays import prefixed, strip
from fedms.model.discriminant import Discriminant
from fedms.model.evidence import Evidence
from fedms.model.expert import Expert
from fedms.model.statistics import FeatureSums
from fedms.training.runner import Runner


class PersonalModel:
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
            name: Expert(parts, scale)
            for name in ("global", "local")
            if (parts := strip(arrays, f"{name}/")) and "head.weight" in parts
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
        own = FeatureSums(self.arrays["own.counts"], self.arrays["own.sums"], torch.empty(0))
        return Evidence(self.discriminant, own, means=gate.evidence == "statistics")

    def gate_features(self, runner: Runner, samples: Samples, boundary: int) -> Tensor:
        """What the gate reads, [n, d]."""
        expert = self.global_expert if self.config.gate.features == "global" else None
        return runner.frozen_outputs(self.config.gate.features, expert, samples, boundary).features

    def judge(self, runner: Runner, samples: Samples, boundary: int) -> ClientOutputs:
        """Run whatever predicts over the samples."""
        predicts, mix_on, method = self.method.predicts, self.config.mixture.on, self.method
        priors = (self.arrays["own.counts"].float(), self.everyone_prior()) if method.label_prior else None
        if predicts == "statistics":
            x = runner.frozen_outputs("backbone", None, samples, boundary).features
            return ClientOutputs(predicts, mix_on, self.discriminant.scores(x), label_priors=priors)
        if predicts == "blend":
            weight = self._likeness(runner, samples, boundary)
            return ClientOutputs(
                predicts,
                mix_on,
                local_logits=runner.outputs(self._blend(weight), samples, boundary).logits,
                weight=weight,
            )
        expert = self.global_expert if predicts != "local" else None
        world = runner.frozen_outputs("global", expert, samples, boundary).logits if expert else None
        own = runner.outputs(self.local_expert, samples, boundary).logits if predicts != "global" else None
        if predicts != "mixture" or method.gate == "constant":
            return ClientOutputs(predicts, mix_on, world, own, label_priors=priors)
        if method.gate == "counts":
            assert world is not None
            return ClientOutputs(
                predicts, mix_on, world, own, gates.count_evidence(world, self.arrays["own.counts"])
            )
        x = self.gate_features(runner, samples, boundary)
        evidence = self.evidence
        log_ratio = evidence.log_ratio(x) if evidence else torch.zeros(len(x))
        if self.network_kept:
            log_ratio = log_ratio + gates.delta(self.arrays, x).detach()
        return ClientOutputs(predicts, mix_on, world, own, log_ratio, self.evidence_scales)

    def everyone_prior(self) -> Tensor:
        """Everyone's label prior [C], as the sums say it; uniform where none travelled."""
        counts = self.arrays["own.counts"]
        uniform = torch.full((len(counts),), 1 / len(counts))
        return self.arrays.get("discriminant.prior", self.arrays.get("everyone.prior", uniform))

    def _likeness(self, runner: Runner, samples: Samples, boundary: int) -> Tensor:
        """Mean cosine of each sample's frozen feature to some of the client's own, at least 0, [n] (FedDPA, arXiv 2403.19211)."""
        x = runner.frozen_outputs("backbone", None, samples, boundary).features
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
