"""A client's finished model as arrays that can be saved and loaded: its experts, its gate, what it knows of
everyone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.config import Config
from fedms.data.federated import Samples
from fedms.federation.method import Method
from fedms.model.arrays import strip
from fedms.model.discriminant import Discriminant
from fedms.model.evidence import Evidence, LinearEvidence
from fedms.model.expert import Expert, same_body
from fedms.model.statistics import FeatureSums
from fedms.training.runner import Runner

UNSCALED = (1.0,) * 9
"""The scale of the gate's evidence at each prior between 0 and 1, where it is taken as it is."""


class PersonalModel:
    """One client's parts.

    Names: `global/...` and `local/...` for the experts, `gate....`, `discriminant....`, `own.counts`,
    `own.sums`.

    Attributes:
        network_kept: whether the gate's network speaks: validation says whether it helps.
        evidence_scales: how far the gate's evidence is trusted, at each prior between 0 and 1.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        method: Method,
        config: Config,
        network_kept: bool = True,
        evidence_scales: Sequence[float] = UNSCALED,
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
            if (parts := strip(arrays, f"{name}/")) and ("head.weight" in parts or config.task == "text")
        }

    @property
    def global_expert(self) -> Expert | None:
        return self.experts.get("global")

    @property
    def local_expert(self) -> Expert | None:
        """The client's own expert; the global one before the client has trained one."""
        return self.experts.get("local", self.global_expert)

    @cached_property
    def local_head_alone(self) -> bool:
        """Whether the local expert is the global one with another head, as before its first training."""
        return self.method.trains_heads_alone(self.config) or same_body(self.local_expert, self.global_expert)

    @cached_property
    def discriminant(self) -> Discriminant:
        return Discriminant.from_arrays(self.arrays)

    @property
    def evidence(self) -> Evidence | None:
        """How statistics weigh a sample; None where the gate has no such evidence."""
        gate = self.config.gate
        if self.method.gate != "learned" or gate.objective == "likelihood" or gate.evidence == "none":
            return None
        own = FeatureSums(self.arrays["own.counts"], self.arrays["own.sums"], None)
        posterior = self._posterior if gate.evidence == "posterior" else None
        return Evidence(self.discriminant, own, gate.evidence != "counts", posterior)

    @property
    def new_evidence(self) -> Evidence | LinearEvidence | None:
        """The same for new samples, which needs no sums."""
        return self.evidence

    def _posterior(self, x: Tensor) -> Tensor:
        """log p(c | x) of the global expert from its features [n, d], [n, C]."""
        assert self.global_expert is not None
        return F.log_softmax(self.global_expert.logits(x), dim=1)

    def gate_features(self, runner: Runner, samples: Samples, boundary: int) -> Tensor:
        """What the gate reads, [n, d]."""
        expert = self.global_expert if self.config.gate.features == "global" else None
        return runner.frozen_outputs(self.config.gate.features, expert, samples, boundary).features

    def everyone_prior(self) -> Tensor:
        """Everyone's label prior [C], as the sums say it; uniform where no sums travelled."""
        counts = self.arrays["own.counts"]
        uniform = torch.full((len(counts),), 1 / len(counts))
        return self.arrays.get("discriminant.prior", self.arrays.get("everyone.prior", uniform))

    def facts(self) -> dict[str, Any]:
        """The parts of the model that are not arrays."""
        return {"network_kept": self.network_kept, "evidence_scales": self.evidence_scales}
