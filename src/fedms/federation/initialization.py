"""From where a client trains: what it was sent, what it kept, and the start of the rest."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from fedms.federation.messages import Task
from fedms.federation.method import LORA, Stage
from fedms.federation.tiers import trainable
from fedms.federation.world import World
from fedms.model.arrays import Arrays, block_of, prefixed, strip
from fedms.model.discriminant import label_shift
from fedms.model.expert import Expert
from fedms.model.heads import nearest_head, statistics_head, zero_head
from fedms.model.parts import fresh_lora, fresh_parts, group, part_of, trained_names
from fedms.model.statistics import FeatureSums
from fedms.training.runner import Runner


class Start:
    """The start of one task.

    Attributes:
        sent: what the client was sent once, this task included.
        kept: what it kept of its local expert; empty before it has trained one.
        when: the stage and round it kept that from.
    """

    def __init__(
        self, world: World, runner: Runner, task: Task, sent: Arrays, kept: Arrays, when: dict[str, Any]
    ) -> None:
        self.world = world
        self.config = world.config
        self.runner = runner
        self.task = task
        self.sent = sent
        self.kept = strip(kept, "local/")
        self.when = when

    def expert(self, stage: Stage) -> Expert:
        """The expert as this round's training finds it."""
        shared = {name: array for name, array in self.task.arrays.items() if part_of(name)}
        if stage.expert == "global":
            known = strip(self.sent, "global/") | shared
            return self._expert(self._fresh(stage, known=known) | known)
        own = self.kept or self.local(stage)
        return self._expert(own | (self._others(stage, own, shared) if stage.average == "beside" else shared))

    def local(self, stage: Stage) -> Arrays:
        """A local expert that has not trained yet: from the global one or what else everybody starts from, or the client's alone."""
        # matrices that are averaged apart from each other must begin alike everywhere
        alike = any(matrix in stage.shares for matrix in LORA)
        sent = strip(self.sent, "global/")
        fresh = self._fresh(stage, *(() if alike else (self.task.client,)))
        if "head.weight" not in sent:
            return fresh | self._own_head()
        start = fresh | (sent if self.config.mixture.local_start == "global" else _heads(sent))
        return start | {"head.bias": start["head.bias"] + self._label_prior() / start["head.log_scale"].exp()}

    def names(self, stage: Stage) -> list[str]:
        """The arrays that train in this stage."""
        blocks = trainable(
            self.task.settings["active"],
            self.world.capacities[self.task.client],
            self.config.activation.order,
        )
        return trained_names(self.world.backbone, stage.trains, blocks, self.config.head.kind)

    def _fresh(self, stage: Stage, *purpose: str, known: Collection[str] = ()) -> Arrays:
        config, active, rank = self.config, self.task.settings["active"], self.world.ranks[self.task.client]
        pairs = fresh_lora(self.world.backbone, active, rank, config.seed, *purpose, known=known)
        return pairs | fresh_parts(
            self.world.backbone, stage.trains, active, config.model.prompt_tokens, config.seed
        )

    def _expert(self, arrays: Arrays) -> Expert:
        return Expert(arrays, self.config.lora.alpha / self.config.lora.rank).to(self.world.backbone.device)

    def _others(self, stage: Stage, own: Arrays, average: Arrays) -> Arrays:
        """The average over the other clients: over all, less this one where it was among them."""
        rest = {
            name: array.clone() for name, array in own.items() if group(name) in LORA
        } | average  # what nobody trains is everybody's
        averaged = self.task.settings.get("averaged")
        if averaged and self.when == {"stage": averaged["stage"], "round": averaged["round"]}:
            weight = len(self.world.samples(self.task.client, "train"))
            for name in average.keys() & self.names(stage):
                share = weight / averaged["weights"][str(block_of(name))]
                # who trained it alone has no others, and what stands in their place changes nothing
                rest[name] = (
                    (average[name] - share * own[name]) / (1 - share)
                    if share < 1
                    else torch.zeros_like(own[name])
                )
        return prefixed(rest, "beside.")

    def _label_prior(self) -> Tensor:
        """log p_k(c) - log q(c): how much likelier each class is here than with everyone, as far as that is trusted, [C]."""
        counts = torch.bincount(
            self.world.samples(self.task.client, "train").labels, minlength=self.world.classes
        ).float()
        uniform = torch.full_like(counts, 1 / len(counts))
        return label_shift(counts, self.sent.get("everyone.prior", uniform), self.config.head.label_prior)

    def _own_head(self) -> Arrays:
        """A head from the client's own data alone, of the configured kind."""
        kind, size = self.config.head.kind, self.world.backbone.feature_size
        if kind == "linear":
            return zero_head(self.world.classes, size)
        if kind in ("text", "text-init"):
            return nearest_head(self.world.class_embeddings, frozen=kind == "text")
        found = {}
        for split in ("train", "validation"):
            samples = self.world.samples(self.task.client, split)
            found[split] = (
                self.runner.frozen_outputs(
                    "backbone", None, samples, self.task.settings["boundary"]
                ).features,
                samples.labels,
            )
        own = FeatureSums.of(*found["train"], self.world.classes).discriminant(
            self.config.statistics.shrinkage
        )
        if kind == "means":
            return nearest_head(own.means)
        return statistics_head(own.calibrated(own.log_likelihood(*found["validation"])))


def _heads(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if name.startswith("head.")}
