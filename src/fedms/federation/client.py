"""The client side: from a task to an update. One host serves any number of clients with one backbone.

A client's data and private state are read and written here and nowhere else; what it answers is in the update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core import seeds
from fedms.core.files import write_arrays
from fedms.data.federated import Samples
from fedms.federation.client_folder import ClientFolder, Recent
from fedms.federation.initialization import Start
from fedms.federation.messages import Task, Update
from fedms.federation.method import Stage, rates
from fedms.federation.methods import of
from fedms.federation.personal_model import PersonalModel
from fedms.federation.prediction import (
    EVEN,
    INTERPOLATIONS,
    PRIORS,
    SCALES,
    ClientOutputs,
    gate_reads_statistics,
)
from fedms.federation.world import World
from fedms.model import gate as gates
from fedms.model.arrays import Arrays, prefixed, split_name, strip
from fedms.model.discriminant import Discriminant
from fedms.model.expert import Expert
from fedms.model.gate import mix
from fedms.model.parts import fresh_lora, group, part_of
from fedms.model.statistics import FeatureSums
from fedms.training.device import moved
from fedms.training.expert_training import LossFunction, Plan, train_expert
from fedms.training.gate_training import network_helps, train_gate
from fedms.training.prefix_cache import PrefixCache
from fedms.training.prefix_store import PrefixStore
from fedms.training.runner import Runner

RECEIVED, STATE = "received", "state"
"""Kinds of files a client keeps: what it was sent once, and what it trained and never sends."""
HELD = 8
"""One part in so many of the cache's memory is for outputs of frozen experts."""
RECENT = 32 * 2**20
"""Bytes of the clients' files that a process need not read again."""
REFERENCES = 5
"""Own samples to which a new one is compared, where experts are blended by likeness."""


@dataclass
class Ready:
    """What a round of local training begins with."""

    stage: Stage
    samples: Samples
    expert: Expert
    plan: Plan
    order: np.random.Generator
    """Of its batches"""
    gate: Arrays


class ClientHost:
    """Handles tasks for any client of the world. `prefixes` is a folder that it shares with other runs, where there is one."""

    def __init__(
        self, world: World, folder: Path, number: int = 0, workers: int = 1, prefixes: Path | None = None
    ) -> None:
        self.world = world
        self.config = world.config
        self.folder = folder
        self.method = of(self.config)
        cache = self.config.cache
        memory, disk = (budget * 2**20 // workers for budget in (cache.memory_mb, cache.disk_mb))
        room = memory // HELD
        place = folder / "cache" / str(number)
        dtype = getattr(torch, cache.dtype)
        content = self.config.model_dump_json(
            include={"seed", "data", "model", "device", "precision", "deterministic"}
        )
        store = PrefixStore(prefixes, cache.disk_mb * 2**20, content) if prefixes else None
        kept = PrefixCache(
            world.backbone, world.inputs, memory - room, disk, place, cache.enabled, dtype, store
        )
        self.runner = Runner(world.backbone, kept, room)
        self._recent = Recent(RECENT)
        self._folders: dict[str, ClientFolder] = {}

    def handle(self, task: Task) -> Update:
        """Do what the task asks."""
        self.receive(task)
        update: Update = getattr(self, f"_{task.kind}")(task)
        update.metrics.setdefault("flops", self.runner.flops)
        update.metrics.setdefault("once", self.runner.once)
        return update

    def receive(self, task: Task) -> None:
        """Begin, and keep what the task brings to be kept."""
        self.runner.begin()
        if sent := {
            name: array
            for name, array in task.arrays.items()
            if name.startswith(("global/", "discriminant.", "everyone."))
        }:
            sent = self._load(task, RECEIVED) | self._drawn(task, sent) | sent
            self._folder(task).save(RECEIVED, (self._number(task), task.round), sent, {})

    def close(self) -> None:
        self.runner.cache.close()

    # what a task stands on

    def _folder(self, task: Task) -> ClientFolder:
        if task.client not in self._folders:
            self._folders[task.client] = ClientFolder(self.folder / "clients" / task.client, self._recent)
        return self._folders[task.client]

    def _drawn(self, task: Task, sent: Arrays) -> Arrays:
        """The A that belong to what was sent: one that nobody trained is not sent, but drawn again by the seed."""
        blocks = {split_name(name)[0] for name in strip(sent, "global/") if name.endswith(".lora_B")}
        fresh = fresh_lora(self.world.backbone, blocks, self.world.ranks[task.client], self.config.seed)
        return prefixed({name: array for name, array in fresh.items() if group(name) == "A"}, "global/")

    def _number(self, task: Task) -> int:
        """The place of the task's stage in the method; what comes after all stages counts on."""
        names = [stage.name for stage in self.method.stages]
        return names.index(task.stage) if task.stage in names else len(names)

    def boundary(self, task: Task) -> int:
        boundary: int = task.settings["boundary"]
        return boundary

    def _start(self, task: Task) -> Start:
        kept, when = self._folder(task).load(STATE, (self._number(task), task.round))
        return Start(self.world, self.runner, task, self._load(task, RECEIVED), kept, when)

    def _load(self, task: Task, kind: str) -> Arrays:
        """What the client kept before this round; what it was sent in this round is included."""
        at = (self._number(task), task.round + (kind == RECEIVED))
        return self._folder(task).load(kind, at)[0]

    def _personal(self, task: Task, network_kept: bool = True) -> PersonalModel:
        """What the client would predict with, if it were asked now."""
        arrays = self._kept(task) | _only(self._load(task, STATE) | task.arrays, "gate.")
        if self.method.gate == "learned":
            arrays = self._fresh_gate(task) | arrays
        if self.method.stages and self.method.stages[-1].expert == "local":
            [expert] = self._local(task, task.settings.get("interpolation", 1.0))
            arrays |= prefixed(expert.detached(), "local/")
        return PersonalModel(arrays, self.method, self.config, network_kept)

    def _local(self, task: Task, *steps: float) -> list[Expert]:
        """The local expert so far on the way from where it started to where it now stands, at 1 (WiSE-FT, arXiv 2109.01903)."""
        stage = self.method.stage(task.stage) if task.stage != "end" else self.method.stages[-1]
        start = self._start(task)
        expert = start.expert(stage)
        begun = start.local(stage) if {*steps} != {1.0} else {}

        def between(step: float) -> Expert:
            return Expert(
                {
                    name: torch.lerp(begun[name].to(array), array, step)
                    for name, array in expert.arrays.items()
                },
                expert.scale,
            )

        return [expert if step == 1 else between(step) for step in steps]

    def _fresh_gate(self, task: Task) -> Arrays:
        gate = self.config.gate
        return gates.fresh_gate(
            self.world.backbone.feature_size, gate.adapter_rank, gate.hidden, self.config.seed, task.client
        )

    def _kept(self, task: Task) -> Arrays:
        """What the client was sent, with the temperature that the server chose since."""
        kept = self._load(task, RECEIVED)
        if "temperature" in task.settings:
            kept["discriminant.temperature"] = torch.tensor(
                [task.settings["temperature"]], dtype=torch.float64
            )
        return kept

    def _features(self, task: Task, split: str) -> Tensor:
        """Features that the federation's statistics are about, [n, d]."""
        role = task.settings["features"]
        expert = (
            PersonalModel(self._load(task, RECEIVED), self.method, self.config).global_expert
            if role == "global"
            else None
        )
        return self.runner.frozen_outputs(
            role, expert, self.world.samples(task.client, split), self.boundary(task)
        ).features

    # kinds of tasks

    def _statistics(self, task: Task) -> Update:
        """Sums of the client's training features."""
        samples = self.world.samples(task.client, "train")
        sums = FeatureSums.of(self._features(task, "train"), samples.labels, self.world.classes)
        return Update(task.client, sums.to_arrays(self.config.statistics.rank), len(samples))

    def _calibrate(self, task: Task) -> Update:
        """Log-likelihood of the client's validation labels under the discriminant, at each temperature."""
        samples = self.world.samples(task.client, "validation")
        everyone = Discriminant.from_arrays(self._load(task, RECEIVED))
        likelihood = everyone.log_likelihood(self._features(task, "validation"), samples.labels)
        return Update(task.client, {"calibrate.log_likelihood": likelihood}, len(samples))

    def _evaluate(self, task: Task) -> Update:
        """The shared expert on the client's validation data."""
        samples = self.world.samples(task.client, "validation")
        expert = self._start(task).expert(self.method.stage(task.stage))
        logits = self.runner.outputs(expert, samples, self.boundary(task)).logits
        assert logits is not None
        return Update(
            task.client,
            weight=len(samples),
            metrics={"correct": int((logits.argmax(1) == samples.labels).sum())},
        )

    def _train(self, task: Task) -> Update:
        """A round of local training."""
        ready, config = self.ready(task), self.config.training
        loss = train_expert(
            self.runner, ready.expert, ready.plan, ready.samples, self.boundary(task), config, ready.order
        )
        return self.trained(task, ready, loss)

    def ready(self, task: Task) -> Ready:
        """All that a round of local training begins with."""
        stage = self.method.stage(task.stage)
        samples = self.world.samples(task.client, "train")
        start = self._start(task)
        expert, names = start.expert(stage), start.names(stage)
        gate, also, loss = self._start_gate(task, stage, samples)
        anchor = (
            {"sent": lambda: dict(expert.arrays), "start": lambda: start.local(stage)}[stage.pull]()
            if stage.pull
            else {}
        )
        plan = Plan(
            names,
            rates(stage, self.config.training),
            stage.phases,
            {name: array.to(self.world.backbone.device) for name, array in anchor.items()},
            self.config.training.proximal if stage.pull else 0.0,
            loss,
            also,
        )
        order = seeds.numpy_generator(self.config.seed, "batches", stage.budget, task.round, task.client)
        return Ready(stage, samples, expert, plan, order, gate)

    def trained(self, task: Task, ready: Ready, loss: float) -> Update:
        """The answer, when the expert has trained; its gate trains now, if it does so by itself."""
        stage, samples, expert, gate = ready.stage, ready.samples, ready.expert, ready.gate
        if ready.plan.also:
            gate = {name: array.detach().cpu() for name, array in gate.items()}
        elif gate:
            gate = self._train_gate(task, stage, samples, gate)
        shared = {name: expert.arrays[name] for name in ready.plan.names if group(name) in stage.shares}
        gate_shared = (
            gates.shared_names(self.config.gate.share)
            if "gate" in stage.shares and self.config.gate.network
            else ()
        )
        metrics: dict[str, Any] = {"loss": loss, "flops": self.runner.flops, "once": self.runner.once}
        if stage.expert == "local":
            private = {
                name: array
                for name, array in expert.arrays.items()
                if stage.average == "beside" or group(name) not in stage.shares
            }
            own = {name: array for name, array in gate.items() if name not in gate_shared}
            own |= prefixed({name: array for name, array in private.items() if part_of(name)}, "local/")
            self._folder(task).save(
                STATE, (self._number(task), task.round), own, {"stage": stage.name, "round": task.round}
            )
            metrics |= self._validate(task, gate | prefixed(expert.arrays, "local/"))
            metrics["evaluation"] = {
                "flops": self.runner.flops - metrics["flops"],
                "once": self.runner.once,
            }
        return Update(task.client, shared | {name: gate[name] for name in gate_shared}, len(samples), metrics)

    def _interpolate(self, task: Task) -> Update:
        """Log-likelihood of the client's validation labels under its local expert, at each interpolation."""
        samples = self.world.samples(task.client, "validation")
        likelihood = []
        for expert in self._local(task, *INTERPOLATIONS):
            logits = self.runner.outputs(expert, samples, self.boundary(task)).logits
            assert logits is not None
            likelihood.append(-float(F.cross_entropy(logits, samples.labels, reduction="sum")))
        return Update(task.client, {"interpolate.log_likelihood": torch.tensor(likelihood)}, len(samples))

    def _weigh(self, task: Task) -> Update:
        """Log-likelihood of the client's validation labels by constant weight, or by prior and scale of the evidence."""
        samples = self.world.samples(task.client, "validation")
        judged = self._finished(task).judge(self.runner, samples, self.boundary(task))
        if self.method.gate == "constant":
            candidates = [judged.log_probabilities(weight) for weight in PRIORS]
        else:
            scaled = [replace(judged, scales=[scale] * len(EVEN)) for scale in SCALES]
            candidates = [each.log_probabilities(prior) for prior in PRIORS[1:-1] for each in scaled]
        likelihood = [
            -float(F.nll_loss(candidate, samples.labels, reduction="sum")) for candidate in candidates
        ]
        return Update(task.client, {"weigh.log_likelihood": torch.tensor(likelihood)}, len(samples))

    def _test(self, task: Task) -> Update:
        """The finished personal model on own and everyone's data; the client keeps it."""
        personal = self._finished(task)
        facts = {
            **personal.facts(),
            "client": task.client,
            "prior": task.settings["prior"],
            "boundary": self.boundary(task),
        }
        write_arrays(self._folder(task).path / "model.safetensors", personal.arrays, facts)
        boundary, prior = self.boundary(task), task.settings["prior"]
        metrics: dict[str, Any] = {
            "samples": len(self.world.samples(task.client, "train")),
            **personal.facts(),
        }
        for split in self.config.evaluation.splits:
            for whose, samples in (
                ("own", self.world.samples(task.client, split)),
                ("everyone", self.world.everyone[split]),
            ):
                judged = personal.judge(self.runner, samples, boundary)
                metrics[f"{split}_{whose}"] = judged.accuracy(samples.labels, prior)
                if self.method.has_frontier:
                    metrics[f"{split}_{whose}_frontier"] = [
                        judged.accuracy(samples.labels, at) for at in PRIORS
                    ]
                metrics[f"{split}_{whose}_global_share"] = _global_share(judged, prior)
        metrics |= self._base(task)
        return Update(task.client, weight=metrics["samples"], metrics=metrics)

    # parts of training

    def _inner_prior(self) -> float:
        """The prior for what is learned or chosen about the gate: at 0 and 1 the gate says nothing, so then 1/2."""
        prior = self.config.gate.prior
        return prior if 0 < prior < 1 else 0.5

    def _start_gate(
        self, task: Task, stage: Stage, samples: Samples
    ) -> tuple[Arrays, list[tuple[Tensor, float]], LossFunction | None]:
        """The gate's arrays; for the objective `likelihood` also what to train jointly, and the mixture's loss."""
        if "gate" not in stage.trains:
            return {}, [], None
        config = self.config.gate
        gate = self._fresh_gate(task) | _only(self._load(task, STATE), "gate.") | _only(task.arrays, "gate.")
        if config.objective != "likelihood":
            return gate, [], None
        personal, device = self._personal(task), self.world.backbone.device
        gate = {name: array.to(device, copy=True).requires_grad_(True) for name, array in gate.items()}
        outputs = self.runner.frozen_outputs("global", personal.global_expert, samples, self.boundary(task))
        assert outputs.logits is not None
        x, world = (
            personal.gate_features(self.runner, samples, self.boundary(task)).to(device),
            outputs.logits.to(device),
        )
        labels, prior = samples.labels.to(device), self._inner_prior()

        def loss(picks: np.ndarray, logits: Tensor) -> Tensor:
            at = moved(torch.from_numpy(picks), device)
            weight = gates.local_weight(gates.delta(gate, x[at]), prior)
            return F.nll_loss(mix(world[at], logits, weight, self.config.mixture.on), labels[at])

        return gate, [(array, config.learning_rate) for array in gate.values()], loss

    def _train_gate(self, task: Task, stage: Stage, samples: Samples, gate: Arrays) -> Arrays:
        if not self.config.gate.network:
            return gate
        personal, x, known = self._own_evidence(task, samples)
        generator = seeds.torch_generator(self.config.seed, "gate", stage.name, task.round, task.client)
        return train_gate(
            gate, x, known, personal.discriminant, personal.evidence, self.config.gate, generator
        )

    def _own_evidence(self, task: Task, samples: Samples) -> tuple[PersonalModel, Tensor, Tensor]:
        """The client's model with its own sums, its gate features, and their evidence with each sample left out of the sums."""
        personal = self._with_own(task, self._personal(task))
        x = personal.gate_features(self.runner, samples, self.boundary(task))
        evidence = personal.evidence
        return (
            personal,
            x,
            evidence.log_ratio_left_out(x, samples.labels) if evidence else torch.zeros(len(x)),
        )

    def _with_own(self, task: Task, personal: PersonalModel) -> PersonalModel:
        """With what the model knows of the client's own training data: label counts, class sums, some features."""
        method, samples = self.method, self.world.samples(task.client, "train")
        own: Arrays = {}
        if gate_reads_statistics(method, self.config):
            role = self.config.gate.features
            expert = personal.global_expert if role == "global" else None
            x = self.runner.frozen_outputs(role, expert, samples, self.boundary(task)).features
            sums = FeatureSums.of(x, samples.labels, self.world.classes)
            own = {"own.counts": sums.counts, "own.sums": sums.sums}
        elif method.label_prior or method.gate == "counts":
            own = {"own.counts": torch.bincount(samples.labels, minlength=self.world.classes)}
        elif method.predicts == "blend":
            x = self.runner.frozen_outputs("backbone", None, samples, self.boundary(task)).features
            some = torch.randperm(
                len(x), generator=seeds.torch_generator(self.config.seed, "references", task.client)
            )[:REFERENCES]
            own = {"own.references": x[some]}
        return PersonalModel(
            personal.arrays | own, method, self.config, personal.network_kept, personal.evidence_scales
        )

    def _validate(self, task: Task, trained: Arrays) -> dict[str, Any]:
        """The personal model as it now stands on the client's validation data."""
        samples = self.world.samples(task.client, "validation")
        personal = self._with_own(task, PersonalModel(self._kept(task) | trained, self.method, self.config))
        judged = personal.judge(self.runner, samples, self.boundary(task))
        return {
            "validated": len(samples),
            "correct": round(judged.accuracy(samples.labels, self.config.gate.prior) * len(samples)),
        }

    # the end

    def _finished(self, task: Task) -> PersonalModel:
        """The client's final model."""
        personal = self._personal(task)
        personal.evidence_scales = task.settings.get("evidence_scales", EVEN)
        personal = self._with_own(task, personal)
        if gate_reads_statistics(self.method, self.config):
            personal.network_kept = self._keep_network(task, personal)
        return personal

    def _keep_network(self, task: Task, personal: PersonalModel) -> bool:
        """Whether validation says that delta helps; without evidence there is nothing else."""
        evidence = personal.evidence
        if evidence is None or not self.config.gate.network:
            return evidence is None
        samples = self.world.samples(task.client, "validation")
        x = personal.gate_features(self.runner, samples, self.boundary(task))
        generator = seeds.torch_generator(self.config.seed, "gate-validation", task.client)
        return network_helps(
            personal.arrays, x, evidence.log_ratio(x), personal.discriminant, evidence, generator
        )

    def _base(self, task: Task) -> dict[str, int]:
        """How many of the client's test samples the frozen model gets right: nearest class name, or nearest class mean."""
        samples = self.world.samples(task.client, "test")
        x = self.runner.frozen_outputs("backbone", None, samples, self.boundary(task)).features
        references = (
            self.world.class_embeddings if self.world.backbone.kind == "text" else task.arrays["base.means"]
        )
        nearest = (F.normalize(x, dim=1) @ F.normalize(references, dim=1).T).argmax(1)
        return {"base_correct": int((nearest == samples.labels).sum()), "base_total": len(samples)}


def _global_share(judged: ClientOutputs, prior: float) -> float | None:
    return 1 - float(judged.local_weight(prior).mean()) if judged.predicts in ("mixture", "blend") else None


def _only(arrays: Arrays, prefix: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name.startswith(prefix)}
