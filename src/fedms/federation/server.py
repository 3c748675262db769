"""The server's side: what is shared, who is asked, and how answers become the new shared state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedms import seeds
from fedms.config import Config
from fedms.federation import aggregation
from fedms.federation.activation import Activation
from fedms.federation.messages import Kind, Task, Update
from fedms.federation.method import Method, Stage
from fedms.federation.personal import PRIORS, SCALES, prefixed, strip
from fedms.model import expert as experts
from fedms.model import gate as gates
from fedms.model.backbone import Backbone
from fedms.model.expert import Arrays
from fedms.model.statistics import Discriminant, Statistics


class Server:
    """The state of a federation between rounds. It holds no samples, and nothing private of any client.

    Attributes:
        shared: what the present stage averages.
        frozen: the global expert as the first stage left it; empty before.
        delivered: who has the frozen global expert.
        prior: how often a client meets its own kind of data, as the mixture will assume.
        evidence_scale: how far the gate's evidence is trusted, chosen on all clients' validation data.
    """

    def __init__(self, config: Config, method: Method, backbone: Backbone, clients: Sequence[str]) -> None:
        self.config = config
        self.method = method
        self.backbone = backbone
        self.clients = sorted(clients)
        self.activation = Activation(config.activation, backbone.depth)
        self.shared: Arrays = {}
        self.frozen: Arrays = {}
        self.discriminant: Discriminant | None = None
        self.delivered: set[str] = set()
        self.prior = config.gate.prior
        self.evidence_scale = 1.0

    # who and what

    def cohort(self, stage: Stage, round_number: int) -> list[str]:
        """Who is asked, drawn anew each round; methods with the same budget ask the same clients."""
        federation = self.config.federation
        size = federation.cohort if stage.budget == "global" else federation.cohort_local or len(self.clients)
        chosen = seeds.numpy_generator(self.config.seed, "cohort", stage.budget, round_number).choice(
            len(self.clients), size, replace=False
        )
        return [self.clients[index] for index in sorted(chosen)]

    def rounds(self, stage: Stage) -> int:
        federation = self.config.federation
        return federation.rounds_global if stage.budget == "global" else federation.rounds_local

    def active(self, stage: Stage | None) -> list[int]:
        """The active blocks; outside all stages, the top block (whatever is frozen below it)."""
        if stage is None:
            return [self.backbone.depth - 1]
        if stage.activation == "all":
            return list(range(self.backbone.depth))
        return self.activation.blocks() if stage.expert == "global" else self.activation.local_blocks()

    def tasks(
        self, kind: Kind, clients: Sequence[str], stage: Stage | None, number: int, arrays: Arrays | None = None, **settings: Any
    ) -> list[Task]:
        """One task a client: the active blocks, these arrays, and the frozen global expert for whom it has not reached."""
        name = stage.name if stage else "end"
        plain = {"active": self.active(stage or (self.method.stages[-1] if self.method.stages else None)), **settings}
        if self.discriminant:
            plain["temperature"] = self.discriminant.temperature
        made = []
        for client in clients:
            sent = dict(arrays or {})
            if self.frozen and client not in self.delivered:
                sent |= prefixed(self.frozen, "global/")
                if self.discriminant:
                    sent["everyone.prior"] = self.discriminant.prior
            made.append(Task(kind, client, name, number, sent, plain))
        return made

    def heard_of(self, updates: Sequence[Update]) -> None:
        """Who has answered a task has what came with it: the frozen global expert, once there is one."""
        if self.frozen:
            self.delivered.update(update.client for update in updates)

    # state

    def begin(self, stage: Stage) -> None:
        """Lay out what the stage shares; a local stage after a global one freezes the global expert first."""
        if stage.expert == "global":
            self._grow(stage)
            return
        self.freeze()
        if "gate" in stage.shares and self.config.gate.share == "adapter":
            gate = self.config.gate
            fresh = gates.fresh_gate(self.backbone.feature_size, gate.adapter_rank, gate.hidden, self.config.seed, "")
            self.shared = {name: fresh[name] for name in gates.ADAPTER}

    def freeze(self) -> None:
        """The shared expert becomes the frozen global one that later stages stand on."""
        if self.method.has_global and not self.frozen:
            self.frozen, self.shared = self.shared, {}

    def start_head(self, classes: int, class_embeddings: Tensor | None) -> None:
        """The head from which the global expert starts."""
        kind = self.config.head.kind
        if kind == "statistics":
            assert self.discriminant is not None
            self.shared |= experts.statistics_head(self.discriminant)
        elif kind == "linear":
            self.shared |= experts.zero_head(classes, self.backbone.feature_size)
        else:
            assert class_embeddings is not None
            self.shared |= experts.text_head(class_embeddings, frozen=kind == "text")

    def aggregate(self, stage: Stage, updates: Sequence[Update]) -> None:
        if self.config.federation.aggregation == "exact" and "lora" in stage.shares:
            self.shared = aggregation.exact(self.shared, updates, self.config.lora.alpha / self.config.lora.rank)
        else:
            self.shared = aggregation.average(self.shared, updates)

    def observe(self, stage: Stage, score: float | None) -> bool:
        """Tell the activation how the round went; True where more blocks are active now."""
        if stage.activation != "sal" or stage.expert != "global" or not self.activation.observe(score):
            return False
        self._grow(stage)
        return True

    def _grow(self, stage: Stage) -> None:
        """Fresh pairs for active blocks that have none yet."""
        fresh = experts.fresh_lora(self.backbone, self.active(stage), self.config.lora.rank, self.config.seed)
        self.shared = fresh | self.shared

    # what comes of sums

    def learn_statistics(self, updates: Sequence[Update]) -> Discriminant:
        parts = [Statistics.from_arrays(update.arrays) for update in sorted(updates, key=lambda update: update.client)]
        return Statistics.total(parts).discriminant(self.config.statistics.shrinkage)

    def calibrate(self, discriminant: Discriminant, updates: Sequence[Update]) -> None:
        self.discriminant = discriminant.calibrated(_sum(updates, "calibrate.log_likelihood"))

    def weigh(self, updates: Sequence[Update]) -> None:
        """The constant weight, or the scale of the evidence, with the best likelihood on all clients' validation data."""
        best = int(_sum(updates, "weigh.log_likelihood").argmax())
        if self.method.gate == "constant":
            self.prior = PRIORS[best]
        else:
            self.evidence_scale = SCALES[best]

    def checkpoint(self) -> tuple[Arrays, dict[str, Any]]:
        """All that is needed to go on."""
        arrays = prefixed(self.shared, "shared/") | prefixed(self.frozen, "frozen/")
        if self.discriminant:
            arrays |= self.discriminant.to_arrays()
        return arrays, {
            "activation": self.activation.state(),
            "delivered": sorted(self.delivered),
            "prior": self.prior,
            "evidence_scale": self.evidence_scale,
        }

    def restore(self, arrays: Arrays, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.shared, self.frozen = strip(arrays, "shared/"), strip(arrays, "frozen/")
        self.discriminant = Discriminant.from_arrays(arrays) if "discriminant.means" in arrays else None
        self.activation.restore(meta["activation"])
        self.delivered, self.prior, self.evidence_scale = set(meta["delivered"]), meta["prior"], meta["evidence_scale"]


def _sum(updates: Sequence[Update], name: str) -> Tensor:
    ordered = sorted(updates, key=lambda update: update.client)
    return torch.stack([update.arrays[name].double() for update in ordered]).sum(0)
