"""One experiment: config -> data, backbone, method, engine; the loop over stages; the run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fedms.config import Config
from fedms.core.reproducibility import same_bits_warning
from fedms.data.public import with_public_digest
from fedms.engines.base import Engine
from fedms.engines.local import check_plugins
from fedms.engines.registry import REMOTE, open_engine
from fedms.experiments.before import Before
from fedms.experiments.ending import finish
from fedms.experiments.first_stage import reusable
from fedms.experiments.observers import Observer, Several, Silent
from fedms.experiments.rounds import Line, Rounds
from fedms.experiments.secure_rounds import SecureRounds
from fedms.experiments.trackers import require_trackers, trackers
from fedms.federation.adapter_start import adapter_pairs
from fedms.federation.admission import Admission
from fedms.federation.exchanges import CALIBRATION, HEAD, LABEL_PRIOR, STATISTICS, TRAINING
from fedms.federation.exchanges.statistics import FeaturesAsked
from fedms.federation.exchanges.testing import BASE_MEANS
from fedms.federation.masking import check_secure
from fedms.federation.method import Stage
from fedms.federation.methods import find
from fedms.federation.recipe import HEADS_FROM_NAMES, recipe_for
from fedms.federation.releasing import check_private
from fedms.federation.server import Server
from fedms.federation.sites import ServerSide
from fedms.federation.world import open_world
from fedms.model.arrays import Arrays
from fedms.model.statistics import normalise
from fedms.runs.cleaning import clean_run
from fedms.runs.environment import describe_environment
from fedms.runs.folder import RunFolder
from fedms.training.ambient import own_torch_state

Features = Literal["backbone", "global"]

log = logging.getLogger(__name__)


@own_torch_state()
def run(
    config: Config,
    out: Path,
    observer: Observer | None = None,
    reuse: Path | None = None,
    resume: bool = False,
    prefixes: Path | None = None,
    written: str | None = None,
) -> dict[str, Any]:
    """Run one experiment into a folder; return the content of its result.json.

    Args:
        config: the experiment.
        out: the run folder.
        observer: is told of the progress.
        reuse: the folder of a finished run of the first stage alone, with the same settings of that stage.
            The stage is taken from there, with what it cost, and not trained again.
        resume: continue the run in the folder, to the same result; begin where there is no run.
        prefixes: a folder of the frozen blocks' outputs, shared by runs. It changes no bit.
        written: the YAML that the user wrote. Its comments are kept in config.yaml.

    Raises:
        ConfigError: the config does not fit the model (exit code 2).
        FedmsError: data, model or folder are not as needed. Nothing has been written then.
    """
    config = find(config.method).configure(config)
    watcher, folder = observer or Silent(), RunFolder(out)
    require_trackers(config)
    check_plugins(config)
    check_secure(config)
    check_private(config)
    config = with_public_digest(config)
    if warning := same_bits_warning():
        log.warning(warning)
    folder.admit(config, resume)  # before anything is loaded
    if resume and (result := folder.result()):
        check_unchanged(config, [folder])
        clean_run(out)  # it may have been killed before that
        watcher.note(f"{out}: finished already")
        return result
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first = reusable(config, reuse) if reuse else None
        before = Before.of(config)
        with closing(REMOTE.get(config.engine.name, open_world)(config)) as world:
            identity = world.check()
            if first is not None:
                first.check_identity(identity, config)
            if before is not None:
                before.check(world, identity)
            kernel = world.backbone.use(folder.kernel() or config.engine.kernels).kernel
            if config.engine.kernels not in ("auto", kernel):
                log.warning("engine.kernels: this run began with %s and keeps it", kernel)
            adapter = adapter_pairs(config, world.backbone)
            with folder.claimed(config, resume, written), open_engine(world, out, prefixes) as engine:
                folder.identify(identity, config)
                folder.describe(describe_environment(config, engine.workers, kernel))
                # the watcher comes last: it may end the run after a round
                watchers = [*trackers(config, folder), watcher]
                made = Experiment(world, folder, engine, Several(watchers), adapter, before)
                return made.run(first, resume)
    finally:
        torch.set_num_threads(threads)


def check_unchanged(config: Config, folders: Iterable[RunFolder]) -> None:
    """Raise FedmsError if data or model of this config have changed since these runs; the line says what."""
    if config.engine.name in REMOTE:
        return  # the data are elsewhere
    identity = open_world(config).check()
    for folder in folders:
        folder.check_identity(identity, config)


@dataclass(frozen=True)
class Step:
    """One thing to do, in its turn."""

    do: Callable[[], None]
    closes: bool = False
    """Whether it ends in a checkpoint. What does not is done again after a resumption, from the same state to
    the same state."""


class Experiment:
    """The loop over stages and rounds.

    Attributes:
        closed: how many checkpoints have been written: the number of the newest.
        reused: whether the first stage is another run's.
        base_means: the federated class means of frozen features, which judge pictures before any training.
        waiting: the line of a round whose validation travels with the next round's training; None where no
            line waits for its score.
    """

    def __init__(
        self,
        world: ServerSide,
        folder: RunFolder,
        engine: Engine,
        observer: Observer,
        adapter: Arrays,
        before: Before | None = None,
    ) -> None:
        self.world = world
        self.config = world.config
        self.recipe = recipe_for(self.config)
        self.folder = folder
        self.engine = engine
        self.observer = observer
        self.server = Server(self.recipe, world.backbone, list(world.clients), world.ranks, adapter)
        self.before = before
        if before is not None:
            self.server.take_over(*before.state())
        admission = Admission(self.server, world.classes, world.capacities)
        rounds = SecureRounds if self.config.privacy.secure_sum else Rounds
        self.rounds = rounds(self.server, admission, engine, folder, observer)
        self.closed = 0
        self.reused = False
        self.base_means: Tensor | None = None
        self.waiting: dict[str, Any] | None = None

    def run(self, reuse: RunFolder | None = None, resume: bool = False) -> dict[str, Any]:
        """Statistics, all stages, the test; writes result.json."""
        self.observer.begin(self.config, self._facts())
        if self.engine.note:
            self.observer.note(self.engine.note)
        self.reused = reuse is not None
        if resume:
            self._go_back()
        steps = self._steps(reuse)
        done = [number for number, step in enumerate(steps, start=1) if step.closes][: self.closed]
        for step in steps[done[-1] if done else 0 :]:
            step.do()
        return self._finish()

    def _steps(self, reuse: RunFolder | None) -> list[Step]:
        """Everything before the end, in order.

        It follows from the config, so a number of checkpoints is a place in it.
        """
        server, recipe, stages = self.server, self.recipe, self.recipe.stages
        if self.config.join is not None:
            return self._steps_of_a_newcomer()
        steps = list[Step]()
        if self.reused:
            steps.append(Step(partial(self._take, reuse), closes=True))
        elif recipe.starts_from_statistics or self._pictures:
            only_base = not recipe.starts_from_statistics
            first = stages[0] if stages else None
            steps.append(Step(partial(self._start_statistics, first, only_base), closes=True))
        if recipe.starts_a_head and not self.reused:
            steps.append(Step(self._start_head))
        for stage in stages[1 if self.reused else 0 :]:
            steps.append(Step(partial(server.begin, stage)))
            if stage == recipe.first_local_stage:
                steps += self._between(stage)
            steps += self._rounds_of(stage)
        steps.append(Step(server.settle))
        return steps if recipe.first_local_stage else [*steps, *self._between(None)]

    def _rounds_of(self, stage: Stage) -> list[Step]:
        numbers = range(1, self.recipe.rounds(stage) + 1)
        rounds = [Step(partial(self._round, stage, number), closes=True) for number in numbers]
        return [*rounds, Step(lambda: self.folder.keep_stage(stage.name, *self._state()))]

    def _steps_of_a_newcomer(self) -> list[Step]:
        """The local stages, each from what the run before shared at its end."""
        stages, steps = self.recipe.stages, list[Step]()
        for stage in [stage for stage in stages if stage.expert == "local"] or stages[-1:]:
            steps.append(Step(partial(self._adopt, stage)))
            steps += self._rounds_of(stage) if stage.expert == "local" else []
        return [*steps, Step(self.server.settle)]

    def _adopt(self, stage: Stage) -> None:
        """Take over what the run before shared at the end of this stage."""
        assert self.before is not None
        arrays, meta = self.before.state(stage)
        self.server.restore(arrays, meta)
        self.server.ledger.forget_clients()
        self.base_means = arrays.get(BASE_MEANS)

    def _between(self, stage: Stage | None) -> list[Step]:
        """What comes between the global expert's training and this local stage, or the end."""
        recipe = self.recipe
        statistics = recipe.rederives_head or (stage is not None and recipe.begins_with_statistics(stage))
        label_prior = stage is not None and recipe.chooses_label_prior
        if not (statistics or label_prior):
            return []
        return [Step(partial(self._choose_starts, stage, statistics, label_prior), closes=True)]

    @property
    def _pictures(self) -> bool:
        """Whether the data are pictures.

        Their accuracy before training stands on sums, not on class names.
        """
        return self.world.backbone.kind == "image"

    def _start_head(self) -> None:
        from_names = self.config.head.kind in HEADS_FROM_NAMES
        self.server.start_head(self.world.classes, self.world.class_embeddings if from_names else None)

    def _go_back(self) -> None:
        """Go back to the newest checkpoint."""
        self.closed, arrays, meta = self.folder.go_back(self.observer.note)
        if not self.closed:
            return
        self.server.restore(arrays, meta)
        self.reused, self.waiting = meta["reused"], meta.get("waiting")
        self.base_means = arrays.get(BASE_MEANS)
        for last in [*filter(None, (*meta["records"], self.waiting))][-1:]:
            place = f" round {last['round']}" if last["rounds"] else ""
            self.observer.note(f"going on after {last['stage']}{place}")

    def _take(self, reuse: RunFolder | None) -> None:
        """Take the first stage from another run, as if it had been trained here."""
        assert reuse is not None
        first, label_prior = self.recipe.stages[0].name, self.server.label_prior
        self.server.restore(*reuse.stage(first))
        self.server.label_prior = label_prior  # which the other run may have fixed
        self.server.ledger.forget_clients()  # these have received nothing yet, and computed nothing
        self._note_base()
        lines = reuse.metrics()
        last = max(place for place, line in enumerate(lines) if line["stage"] == first)
        self._close(*lines[: last + 1])

    def _facts(self) -> dict[str, Any]:
        stages = [{"stage": stage.name, "rounds": self.recipe.rounds(stage)} for stage in self.recipe.stages]
        return {
            "clients": len(self.world.clients),
            "classes": self.world.classes,
            "samples": self.world.sample_count,
            "blocks": self.world.backbone.depth,
            "model": self.config.model.name,
            "workers": self.engine.workers,
            "plan": stages,
        }

    # ends of exchanges

    def _close(self, *records: dict[str, Any]) -> None:
        """Write a checkpoint.

        It also keeps the lines, so that a metrics.jsonl that is damaged later can be restored.
        """
        arrays, meta = self._state()
        self.closed += 1
        meta |= {"reused": self.reused, "waiting": self.waiting}
        self.folder.checkpoint(self.closed, arrays, meta, records)
        for record in records:
            self.folder.append_metrics(record)
        for record in records:
            self.observer.round_done(record)

    def _state(self) -> tuple[Arrays, dict[str, Any]]:
        """The server's state, and the means that judge pictures."""
        arrays, meta = self.server.checkpoint()
        if self.base_means is not None:
            arrays[BASE_MEANS] = self.base_means.clone()  # it may be the discriminant's own
        return arrays, meta

    # statistics

    def _start_statistics(self, stage: Stage | None, evaluation: bool) -> None:
        """Sums of frozen features, from which all start."""
        line = self._statistics_line(stage)
        self._statistics(line, stage, "backbone", evaluation)
        self._note_base()
        self._close(line.record())

    def _choose_starts(self, stage: Stage | None, statistics: bool, label_prior: bool) -> None:
        """Validation chooses what this local stage, or the end, stands on: sums of the global expert's
        features, the global expert's head, and how many samples everyone's label shares count in a client's.
        """
        server, recipe, line = self.server, self.recipe, self._statistics_line(stage)
        if statistics:
            self._statistics(line, stage, "global")
        if recipe.rederives_head:
            server.rederive_head(HEAD.result(self.rounds.ask(line, HEAD, line.cohort, stage), recipe))
        if label_prior:
            answers = self.rounds.ask(line, LABEL_PRIOR, self.server.sampling.validators, stage)
            server.label_prior = LABEL_PRIOR.result(answers, recipe)
        self._close(line.record())

    def _statistics_line(self, stage: Stage | None) -> Line:
        clients = self.server.sampling.some("statistics", self.config.statistics.clients)
        return Line("statistics", 0, 0, len(self.server.active(stage)), clients)

    def _statistics(
        self, line: Line, stage: Stage | None, features: Features, evaluation: bool = False
    ) -> None:
        """Clients send their sums once; then the same clients' validation data choose the discriminant's
        shrinkage and temperature, if they may choose anything.
        """
        server, recipe, anchor = self.server, self.recipe, self.config.statistics.anchor
        asked = FeaturesAsked(features)
        ask = partial(self.rounds.ask, line, clients=line.cohort, stage=stage, evaluation=evaluation)
        sums = STATISTICS.result(ask(STATISTICS, asked=asked), recipe)
        named = features == "backbone" and (anchor > 0 or (recipe.private and not self._pictures))
        names = normalise(self.world.class_embeddings) if named else None
        discriminant = sums.discriminant(None, names, anchor)
        server.expect_discriminant()
        if recipe.private:
            return server.learn(discriminant)
        answers = ask(CALIBRATION, asked=asked, arrays=discriminant.to_arrays())
        server.learn(discriminant.calibrated(CALIBRATION.result(answers, recipe), recipe.shrinkages))

    def _note_base(self) -> None:
        if self.server.discriminant:
            self.base_means = self.server.discriminant.means

    # rounds

    def _round(self, stage: Stage, number: int) -> None:
        server, recipe = self.server, self.recipe
        planned, before = recipe.rounds(stage), self.waiting
        line = Line(stage.name, number, planned, len(server.active(stage)), [])
        updates = self.rounds.train(line, stage, validates=before is not None)
        trained = TRAINING.result(updates, recipe)
        line.train_loss = trained.train_loss
        if before is None:
            line.validation_score = trained.validation_score
        else:
            before["validation_score"] = trained.validation_score
        if self.config.join is None:  # who joins changes nothing that others share
            server.aggregate(stage, number, updates)
        last = number == planned
        due = stage.expert == "global" and (last or number % self.config.evaluation.every == 0)
        travels = due and not last and self.rounds.can_validate_later(stage, number)
        if due and not travels:
            line.validation_score = self.rounds.validate(line, stage)
        if not last and server.observe(stage, number, line.validation_score):
            self.observer.note(
                f"{stage.name} round {number}: {len(server.active(stage))} blocks are active now"
            )
        record = line.record()
        self.waiting = record if travels else None
        self._close(*filter(None, (before, None if travels else record)))

    # the end

    def _finish(self) -> dict[str, Any]:
        chosen = self.before.selection if self.before and self.config.join is not None else None
        return finish(self.rounds, self.world, self.base_means if self._pictures else None, chosen)
