"""The server's side: what is shared, who is asked, and how answers become the new shared state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedms.config import Config
from fedms.core import seeds
from fedms.federation.activation import Activation
from fedms.federation.aggregation import mean as aggregation
from fedms.federation.aggregation import robust
from fedms.federation.messages import Task, TaskKind, Update
from fedms.federation.method import Method, Stage
from fedms.federation.prediction import EVEN, INTERPOLATIONS, PRIORS, SCALES, gate_reads_statistics
from fedms.model import gate as gates
from fedms.model.arrays import Arrays, block_of, prefixed, strip
from fedms.model.backbone import Backbone
from fedms.model.discriminant import Discriminant
from fedms.model.heads import nearest_head, statistics_head, zero_head
from fedms.model.parts import fresh_lora, fresh_parts, group, trained_names
from fedms.model.statistics import FeatureSums


class Server:
    """The state of a federation between rounds. It holds no samples, and nothing private of any client.

    Attributes:
        shared: what the present stage averages.
        frozen: what no stage averages any more: the start of what is private, and the global expert once it is settled.
        settled: whether the global expert is finished and frozen.
        delivered: who has what is frozen.
        informed: who has the discriminant as it now stands.
        booked: by client, what it has computed once and keeps, and which of it: what that took has been counted.
        declared: by client, of how many samples it has said that it holds them, by split.
        averaged: of what round the present average is, and of how many samples by block, where clients take themselves out of it;
            and who is in it.
        prior: how often a client meets its own kind of data, as the mixture will assume.
        interpolation: how far the local experts go from where they started to where training took them; until it is known, all the way.
        evidence_scales: how far the gate's evidence is trusted at each prior between 0 and 1, chosen on all clients' validation data.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        backbone: Backbone,
        clients: Sequence[str],
        ranks: Mapping[str, int],
    ) -> None:
        self.config = config
        self.method = method
        self.ranks = ranks
        self.backbone = backbone
        self.clients = sorted(clients)
        self.activation = Activation(config.activation, backbone.depth)
        self.shared: Arrays = {}
        self.frozen: Arrays = {}
        self.discriminant: Discriminant | None = None
        self.settled = False
        self.delivered: set[str] = set()
        self.informed: set[str] = set()
        self.booked: dict[str, dict[str, str]] = {}
        self.declared: dict[str, dict[str, int]] = {}
        self.averaged: dict[str, Any] = {}
        self.prior = config.gate.prior
        self.interpolation = 1.0 if config.mixture.interpolation is None else config.mixture.interpolation
        self.evidence_scales: Sequence[float] = EVEN

    # who and what

    def cohort(self, stage: Stage, round_number: int) -> list[str]:
        """Who is asked, drawn anew each round; methods with the same budget ask the same clients."""
        federation = self.config.federation
        size = federation.cohort if stage.budget == "global" else federation.cohort_local or len(self.clients)
        chosen = seeds.numpy_generator(self.config.seed, "cohort", stage.budget, round_number).choice(
            len(self.clients), size, replace=False
        )
        return [self.clients[index] for index in sorted(chosen)]

    def others(self, stage: Stage, round_number: int) -> list[str]:
        """Everybody else, in the order in which they are asked beside the cohort or in place of those of it that fail."""
        cohort = {*self.cohort(stage, round_number)}
        rest = [client for client in self.clients if client not in cohort]
        drawn = seeds.numpy_generator(self.config.seed, "others", stage.budget, round_number).permutation(
            len(rest)
        )
        return [rest[index] for index in drawn]

    def some(self, purpose: str, most: int | None) -> list[str]:
        """At most so many clients, always the same for the purpose; None: all."""
        if most is None or most >= len(self.clients):
            return self.clients
        chosen = seeds.numpy_generator(self.config.seed, "some", purpose).choice(
            len(self.clients), most, replace=False
        )
        return [self.clients[index] for index in sorted(chosen)]

    def rounds(self, stage: Stage) -> int:
        federation = self.config.federation
        return federation.rounds_global if stage.budget == "global" else federation.rounds_local

    def active(self, stage: Stage | None) -> list[int]:
        """The active blocks; none outside all stages."""
        if stage is None or stage.activation == "none":
            return []
        if stage.activation == "all":
            return list(range(self.backbone.depth))
        return self.activation.blocks() if stage.expert == "global" else self.activation.local_blocks()

    def boundary(self, stage: Stage | None) -> int:
        """The lowest block that is not the frozen backbone's alone; with soft prompts, that is all of them."""
        if any("prompt" in each.trains for each in self.method.stages):
            return 0
        return min(self.active(stage), default=self.backbone.depth)

    def tasks(
        self,
        kind: TaskKind,
        clients: Sequence[str],
        stage: Stage | None,
        number: int,
        arrays: Arrays | None = None,
        **settings: Any,
    ) -> list[Task]:
        """One task a client: the active blocks, these arrays, and what is frozen for whom it has not reached."""
        name = stage.name if stage else "end"
        last = stage or (self.method.stages[-1] if self.method.stages else None)
        plain = {"active": self.active(last), "boundary": self.boundary(last), **settings}
        if self.discriminant:
            plain["temperature"] = self.discriminant.temperature
        average = {key: value for key, value in self.averaged.items() if key != "clients"}
        made = []
        for client in clients:
            sent = self._cut(arrays or {}, client)
            if self.frozen and client not in self.delivered:
                sent |= prefixed(self._cut(self.frozen, client), "global/")
                if self.discriminant:
                    sent["everyone.prior"] = self.discriminant.prior.clone()  # which may go along itself
            if self.discriminant and client not in self.informed and self._stands_on_sums(kind, stage):
                sent |= self.discriminant.to_arrays()
            own = {"averaged": average} if client in self.averaged.get("clients", ()) else {}
            made.append(Task(kind, client, name, number, sent, plain | own))
        return made

    def _stands_on_sums(self, kind: TaskKind, stage: Stage | None) -> bool:
        """Whether a client needs the discriminant for this, though it had no part in making it, or failed then."""
        personal = kind in ("weigh", "test") or (
            kind == "train" and stage is not None and stage.expert == "local"
        )
        return personal and (
            gate_reads_statistics(self.method, self.config) or self.method.predicts == "statistics"
        )

    def _cut(self, arrays: Arrays, client: str) -> Arrays:
        """Pairs at the rank that the client can take."""
        rank = self.ranks[client]
        if rank == self.config.lora.rank:
            return dict(arrays)
        cut = {"A": lambda array: array[:rank], "B": lambda array: array[:, :rank].contiguous()}
        return {
            name: cut[matrix](array) if (matrix := group(name)) in cut else array
            for name, array in arrays.items()
        }

    def record_delivery(self, tasks: Sequence[Task], updates: Sequence[Update]) -> None:
        """Who has answered a task has what came with it: what is frozen, once there is something, and the discriminant."""
        answered = {update.client for update in updates}
        if self.frozen:
            self.delivered |= answered
        self.informed |= {
            task.client for task in tasks if task.client in answered and "discriminant.means" in task.arrays
        }

    def book(self, costs: Iterable[tuple[str, Mapping[str, Any]]], evaluation: bool = False) -> int:
        """Operations to count for these answers: each a client and what it says of costs. Those of evaluation have a ledger of their own,
        so that training costs the same however often it is evaluated.

        What a client computes once and keeps counts where an answer first stands on it. A client that has lost it, as after a
        resumption, computes it again: that is the price of the accident, not of the method, and is not counted.
        """
        total = 0
        for client, cost in costs:
            total += int(cost.get("flops", 0))
            booked = self.booked.setdefault(client, {})
            for what, (which, flops) in cost.get("once", {}).items():
                if evaluation and booked.get(what) == which:
                    continue
                name = f"evaluation {what}" if evaluation else what
                if booked.get(name) != which:
                    booked[name] = which
                    total += int(flops)
        return total

    def forget_clients(self) -> None:
        """Take the clients for new ones, who have received nothing, computed nothing and declared nothing."""
        self.delivered.clear()
        self.informed.clear()
        self.booked.clear()
        self.declared.clear()

    # state

    def begin(self, stage: Stage) -> None:
        """Lay out what the stage shares."""
        if stage.expert == "local":
            self.settle()
        if not self.settled:
            self._lay_out(stage)
        if "gate" in stage.shares and self.config.gate.share == "adapter":
            gate = self.config.gate
            fresh = gates.fresh_gate(
                self.backbone.feature_size, gate.adapter_rank, gate.hidden, self.config.seed, ""
            )
            self.shared = {name: fresh[name] for name in gates.ADAPTER}

    def _lay_out(self, stage: Stage) -> None:
        """Fresh arrays for what is shared and not there yet. A start that is not shared reaches each client once."""
        names = trained_names(self.backbone, stage.shares, self.active(stage), self.config.head.kind)
        fresh = self._fresh(stage)
        self.frozen |= {name: array for name, array in self.shared.items() if name not in names}
        self.shared = {name: (fresh | self.shared)[name] for name in names}

    def _fresh(self, stage: Stage) -> Arrays:
        config = self.config
        pairs = fresh_lora(self.backbone, self.active(stage), config.lora.rank, config.seed)
        return pairs | fresh_parts(self.backbone, stage.shares, (), config.model.prompt_tokens, config.seed)

    def settle(self) -> None:
        """The shared expert becomes the frozen global one that later stages stand on."""
        if self.settled or not self.method.has_global:
            return
        self.frozen, self.shared, self.settled = self.frozen | self.shared, {}, True
        self.delivered.clear()

    def start_head(self, classes: int, class_embeddings: Tensor | None) -> None:
        """The head from which everybody starts."""
        kind = self.config.head.kind
        if kind in ("statistics", "means"):
            assert self.discriminant is not None
            means = self.discriminant.means
            self.shared |= statistics_head(self.discriminant) if kind == "statistics" else nearest_head(means)
        elif kind == "linear":
            self.shared |= zero_head(classes, self.backbone.feature_size)
        else:
            assert class_embeddings is not None
            self.shared |= nearest_head(class_embeddings, frozen=kind == "text")

    def aggregate(self, stage: Stage, number: int, updates: Sequence[Update]) -> None:
        """The shared state from what clients sent."""
        kind, lora = self.config.federation.aggregation, self.config.lora
        if stage.average == "beside":
            weights: dict[str, float] = defaultdict(
                float
            )  # by block, since not everybody need train every one
            for update in updates:
                for block in {block_of(name) for name in update.arrays}:
                    weights[str(block)] += update.weight
            clients = sorted(update.client for update in updates)
            self.averaged = {
                "stage": stage.name,
                "round": number,
                "weights": dict(weights),
                "clients": clients,
            }
        if stage.averages_products and kind == "exact":
            self.shared = aggregation.exact(self.shared, updates, lora.alpha / lora.rank)
        elif stage.averages_products and kind == "svd":
            self.shared = aggregation.svd(self.shared, updates, lora.rank)
        else:
            self.shared = self._mean(updates)

    def _mean(self, updates: Sequence[Update]) -> Arrays:
        """The weighted mean, or what stands in its place where clients may lie."""
        federation = self.config.federation
        if federation.robust == "median":
            return robust.median(self.shared, updates)
        if federation.robust == "trimmed-mean":
            return robust.trimmed_mean(self.shared, updates, federation.liars)
        if federation.robust == "multi-krum":
            return robust.multi_krum(self.shared, updates, federation.liars)
        if federation.robust == "norm-clip":
            return robust.norm_clip(self.shared, updates)
        return aggregation.average(self.shared, updates)

    def observe(self, stage: Stage, number: int, score: float | None) -> bool:
        """Tell the activation how this round of the stage went; True where more blocks are active now."""
        if (
            stage.activation != "sal"
            or stage.expert != "global"
            or not self.activation.observe(score, self.rounds(stage) - number)
        ):
            return False
        self.shared |= {name: array for name, array in self._fresh(stage).items() if name not in self.shared}
        return True

    # what comes of sums

    def learn_statistics(self, updates: Sequence[Update]) -> Discriminant:
        self.informed.clear()  # of another one
        parts = [
            FeatureSums.from_arrays(update.arrays)
            for update in sorted(updates, key=lambda update: update.client)
        ]
        return FeatureSums.total(parts).discriminant(self.config.statistics.shrinkage)

    def calibrate(self, discriminant: Discriminant, updates: Sequence[Update]) -> None:
        self.discriminant = discriminant.calibrated(_sum(updates, "calibrate.log_likelihood"))

    def interpolate(self, updates: Sequence[Update]) -> None:
        """The interpolation of the local experts with the best likelihood on all clients' validation data."""
        self.interpolation = INTERPOLATIONS[int(_sum(updates, "interpolate.log_likelihood").argmax())]

    def weigh(self, updates: Sequence[Update]) -> None:
        """The constant weight, or for each prior the scale of the evidence, with the best likelihood on all clients' validation data."""
        likelihood = _sum(updates, "weigh.log_likelihood")
        if self.method.gate == "constant":
            self.prior = PRIORS[int(likelihood.argmax())]
        else:
            self.evidence_scales = [
                SCALES[best] for best in likelihood.view(len(EVEN), len(SCALES)).argmax(1).tolist()
            ]

    def checkpoint(self) -> tuple[Arrays, dict[str, Any]]:
        """All that is needed to go on."""
        arrays = prefixed(self.shared, "shared/") | prefixed(self.frozen, "frozen/")
        if self.discriminant:
            arrays |= self.discriminant.to_arrays()
        return arrays, {
            "activation": self.activation.state(),
            "delivered": sorted(self.delivered),
            "informed": sorted(self.informed),
            "booked": self.booked,
            "declared": self.declared,
            "settled": self.settled,
            "averaged": self.averaged,
            "prior": self.prior,
            "evidence_scales": list(self.evidence_scales),
        }

    def restore(self, arrays: Arrays, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.shared, self.frozen = strip(arrays, "shared/"), strip(arrays, "frozen/")
        self.discriminant = Discriminant.from_arrays(arrays) if "discriminant.means" in arrays else None
        self.activation.restore(meta["activation"])
        self.delivered, self.settled, self.averaged = (
            set(meta["delivered"]),
            meta["settled"],
            meta["averaged"],
        )
        self.prior, self.evidence_scales, self.booked = (
            meta["prior"],
            meta.get("evidence_scales", EVEN),
            meta.get("booked", {}),
        )
        self.declared, self.informed = meta.get("declared", {}), set(meta.get("informed", ()))


def _sum(updates: Sequence[Update], name: str) -> Tensor:
    ordered = sorted(updates, key=lambda update: update.client)
    return torch.stack([update.arrays[name].double() for update in ordered]).sum(0)
