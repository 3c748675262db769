"""One experiment: config -> data, backbone, method, engine; the loop over stages; the run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedms.config import Config
from fedms.core.reproducibility import same_bits_warning
from fedms.data import sources
from fedms.data.partition import partition
from fedms.engines.local import LocalEngine
from fedms.experiments.first_stage import reusable
from fedms.experiments.observers import Observer, Several, Silent
from fedms.experiments.rounds import Asking, Round
from fedms.experiments.tensorboard import Events, require_tensorboard
from fedms.federation.adapter_start import adapter_pairs
from fedms.federation.admission import Admission
from fedms.federation.method import Stage
from fedms.federation.methods import find, of
from fedms.federation.prediction import gate_reads_statistics
from fedms.federation.server import Server
from fedms.federation.world import World, open_world
from fedms.model.arrays import Arrays
from fedms.runs.environment import describe_environment
from fedms.runs.folder import RunFolder
from fedms.runs.result import make_result

log = logging.getLogger(__name__)


def run(
    config: Config,
    out: Path,
    observer: Observer | None = None,
    reuse: Path | None = None,
    resume: bool = False,
    prefixes: Path | None = None,
) -> dict[str, Any]:
    """Run one experiment into the folder `out`; return what its result.json says.

    `reuse` is the folder of a finished run of the first stage alone, with the same settings as far as they concern it: it
    is taken from there, with what it cost, and not trained again. With `resume`, a run that is there is gone on with, to the
    same result; where there is none, it begins. What the frozen blocks come to is taken from the folder `prefixes`, if there is
    one, and left there for the next run; it changes no bit.

    Raises:
        ConfigError: the config does not fit the model (exit code 2).
        FedmsError: data, model or folder are not as needed. Nothing has been written then.
    """
    config = find(config.method).configure(config)
    watcher, folder = observer or Silent(), RunFolder(out)
    require_tensorboard(config)
    if warning := same_bits_warning():
        log.warning(warning)
    folder.admit(config, resume)  # before anything is loaded
    if resume and (result := folder.result()):
        watcher.note(f"{out}: finished already")
        return result
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first = reusable(config, reuse) if reuse else None
        world = open_world(config)
        world.dataset.check()
        adapter = adapter_pairs(config, world.backbone)
        with folder.claimed(config, resume), LocalEngine(world, out, prefixes) as engine:
            folder.describe(describe_environment(config, engine.workers))
            # the watcher comes last: it may end the run after a round
            watchers = [*([Events(folder)] if config.log.tensorboard else []), watcher]
            return Experiment(world, folder, engine, Several(watchers), adapter).run(first, resume)
    finally:
        torch.set_num_threads(threads)


def describe_partition(config: Config) -> dict[str, Any]:
    """Who holds what, without loading a model: classes, clients, counts [client][class], splits [client][3]."""
    find(config.method)
    dataset = sources.load(config.data, config.seed)
    parts = partition(dataset, config.partition, config.seed)
    return {
        "classes": list(dataset.class_names),
        "clients": [client.name for client in parts.clients],
        "counts": parts.counts(dataset.labels, len(dataset.class_names)).tolist(),
        "splits": [[len(client.train), len(client.validation), len(client.test)] for client in parts.clients],
    }


BASE = "base.means"
"""The federated class means of frozen features."""


@dataclass(frozen=True)
class Step:
    """One thing to do, in its turn."""

    do: Callable[[], None]
    closes: bool = False
    """Whether it ends in a checkpoint. What does not is done again after a resumption, from the same state to the same state."""


class Experiment:
    """The loop over stages and rounds.

    Attributes:
        closed: how many checkpoints have been written: the number of the newest.
        reused: whether the first stage is another run's.
    """

    def __init__(
        self, world: World, folder: RunFolder, engine: LocalEngine, observer: Observer, adapter: Arrays
    ) -> None:
        self.world = world
        self.config = world.config
        self.folder = folder
        self.engine = engine
        self.observer = observer
        self.method = of(self.config)
        self.server = Server(self.config, self.method, world.backbone, list(world.clients), world.ranks, adapter)
        self.asking = Asking(
            self.server, Admission(self.server, world.classes, world.capacities), engine, folder, observer
        )
        self.closed = 0
        self.reused = False
        self.base_means: torch.Tensor | None = None

    def run(self, reuse: RunFolder | None = None, resume: bool = False) -> dict[str, Any]:
        """Statistics, all stages, the test; writes result.json."""
        self.observer.begin(self.config, self._facts())
        if self.engine.choice.why:
            self.observer.note(self.engine.choice.why)
        self.reused = reuse is not None
        if resume:
            self._go_back()
        steps = self._steps(reuse)
        done = [number for number, step in enumerate(steps, start=1) if step.closes][: self.closed]
        for step in steps[done[-1] if done else 0 :]:
            step.do()
        return self._finish()

    def _steps(self, reuse: RunFolder | None) -> list[Step]:
        """All that comes before the end, in order: it follows from the config, so a number of checkpoints is a place in it."""
        server, stages = self.server, self.method.stages
        steps = []
        if self.reused:
            steps.append(Step(partial(self._take, reuse), closes=True))
        elif (
            self._trains_on_statistics() or self.world.backbone.kind == "image"
        ):  # whose base accuracy stands on them
            evaluation = not self._trains_on_statistics()
            steps.append(
                Step(
                    partial(self._exchange_statistics, stages[0] if stages else None, "backbone", evaluation),
                    closes=True,
                )
            )
        if self._has_common_start() and not self.reused:
            text = self.config.head.kind in ("text", "text-init")
            steps.append(
                Step(
                    lambda: server.start_head(
                        self.world.classes, self.world.class_embeddings if text else None
                    )
                )
            )
        for stage in stages[1 if self.reused else 0 :]:
            steps.append(Step(partial(server.begin, stage)))
            if (
                "gate" in stage.trains
                and self._gate_reads_statistics()
                and self.config.gate.features == "global"
            ):
                steps.append(Step(partial(self._exchange_statistics, stage, "global"), closes=True))
            steps += [
                Step(partial(self._round, stage, number), closes=True)
                for number in range(1, server.rounds(stage) + 1)
            ]
            steps.append(Step(partial(self._keep_stage, stage)))
        return [*steps, Step(server.settle)]

    def _keep_stage(self, stage: Stage) -> None:
        self.folder.keep_stage(stage.name, *self.server.checkpoint())

    def _go_back(self) -> None:
        """To the newest checkpoint."""
        self.closed, arrays, meta = self.folder.go_back(self.observer.note)
        if not self.closed:
            return
        self.server.restore(arrays, meta)
        self.reused = meta["reused"]
        self.base_means = arrays.get(BASE)
        for last in meta["records"][-1:]:
            self.observer.note(
                f"going on after {last['stage']}" + (f" round {last['round']}" if last["rounds"] else "")
            )

    def _take(self, reuse: RunFolder | None) -> None:
        """The first stage from another run, as if it had been trained here."""
        assert reuse is not None
        self.server.restore(*reuse.stage(self.method.stages[0].name))
        self.server.forget_clients()  # these have received nothing yet, and computed nothing
        self.server.prior = self.config.gate.prior  # the other run may have had another one
        self._note_base()
        taken = [
            record
            for record in reuse.metrics()
            if record["stage"] in ("statistics", self.method.stages[0].name)
        ]
        self._close(*taken)

    def _facts(self) -> dict[str, Any]:
        return {
            "clients": len(self.world.clients),
            "classes": self.world.classes,
            "samples": len(self.world.dataset.labels),
            "blocks": self.world.backbone.depth,
            "model": self.config.model.name,
            "workers": self.engine.workers,
            "plan": [
                {"stage": stage.name, "rounds": self.server.rounds(stage)} for stage in self.method.stages
            ],
        }

    # ends of exchanges

    def _close(self, *records: dict[str, Any]) -> None:
        """Write what has come about. The lines are kept with the checkpoint, so that whatever befalls metrics.jsonl after it is mended."""
        arrays, meta = self.server.checkpoint()
        if self.base_means is not None:
            arrays[BASE] = self.base_means.clone()  # it may be the discriminant's own
        self.closed += 1
        self.folder.checkpoint(self.closed, arrays, {**meta, "reused": self.reused}, records)
        for record in records:
            self.folder.append_metrics(record)
        for record in records:
            self.observer.round_done(record)

    # statistics

    def _gate_reads_statistics(self) -> bool:
        return gate_reads_statistics(self.method, self.config)

    def _trains_on_statistics(self) -> bool:
        """Whether training or prediction stands on sums of the frozen backbone's features."""
        head = self.config.head.kind in ("statistics", "means") and self._has_common_start()
        gate = self._gate_reads_statistics() and self.config.gate.features == "backbone"
        return head or gate or self.method.predicts == "statistics"

    def _has_common_start(self) -> bool:
        """Whether everybody starts from one head: there is a global expert, or part of the local ones is shared from the start."""
        return self.method.has_global or any({*stage.shares} - {"gate"} for stage in self.method.stages)

    def _exchange_statistics(self, stage: Stage | None, features: str, evaluation: bool = False) -> None:
        """Clients send their sums once; then the discriminant's temperature is chosen on the same clients' validation data."""
        server = self.server
        clients = server.some("statistics", self.config.statistics.clients)
        line = Round("statistics", 0, 0, len(server.active(stage)), clients)
        ask = partial(
            self.asking.ask, line, clients=clients, stage=stage, evaluation=evaluation, features=features
        )
        updates = ask(kind="statistics")
        discriminant = server.learn_statistics(updates)
        server.calibrate(discriminant, ask(kind="calibrate", arrays=discriminant.to_arrays()))
        if features == "backbone":
            self._note_base()
        self._close(line.record())

    def _note_base(self) -> None:
        """Keep the federated class means of frozen features: for images, what the untrained model is judged by."""
        if self.server.discriminant:
            self.base_means = self.server.discriminant.means

    # rounds

    def _round(self, stage: Stage, number: int) -> None:
        server = self.server
        line = Round(stage.name, number, server.rounds(stage), len(server.active(stage)), [])
        updates = self.asking.round(line, stage)
        weight = sum(update.weight for update in updates)
        line.train_loss = sum(update.weight * float(update.metrics["loss"]) for update in updates) / weight
        server.aggregate(stage, number, updates)
        last = number == server.rounds(stage)
        if stage.expert == "local":
            line.validation_score = sum(u.metrics["correct"] for u in updates) / sum(
                u.metrics["validated"] for u in updates
            )
        elif last or number % self.config.evaluation.every == 0:
            scored = self.asking.ask(
                line, "evaluate", self._validators(), stage, evaluation=True, arrays=server.shared
            )
            line.validation_score = sum(update.metrics["correct"] for update in scored) / sum(
                update.weight for update in scored
            )
        if not last and server.observe(stage, number, line.validation_score):
            self.observer.note(
                f"{stage.name} round {number}: {len(server.active(stage))} blocks are active now"
            )
        self._close(line.record())

    def _validators(self) -> list[str]:
        return self.server.some("validation", self.config.evaluation.clients)

    def _finish(self) -> dict[str, Any]:
        """Every client's final model, tested on its own and on everyone's data; no checkpoint, for it is soon done again."""
        server = self.server
        line = Round(
            "end",
            0,
            0,
            len(server.active(self.method.stages[-1] if self.method.stages else None)),
            server.clients,
        )
        arrays = dict(server.shared)
        if self.method.predicts == "mixture" and self.config.mixture.interpolation is None:
            server.interpolate(self.asking.ask(line, "interpolate", self._validators(), None, arrays=arrays))
        if self.method.gate == "constant" or self._gate_reads_statistics():
            server.weigh(
                self.asking.ask(
                    line, "weigh", self._validators(), None, arrays=arrays, interpolation=server.interpolation
                )
            )
        if self.base_means is not None and self.world.backbone.kind == "image":
            arrays[BASE] = self.base_means
        updates = self.asking.ask(
            line,
            "test",
            server.clients,
            None,
            needed=len(server.clients),  # a result is about every client
            evaluation=True,
            arrays=arrays,
            prior=server.prior,
            interpolation=server.interpolation,
            evidence_scales=list(server.evidence_scales),
        )
        record = line.record()
        self.folder.append_metrics(record)
        result = make_result(
            self.world, self.method, updates, self.folder.metrics(), self.engine.peak_memory(), server
        )
        self.folder.write_result(result)
        self.observer.round_done(record)
        self.observer.end(result)
        return result
