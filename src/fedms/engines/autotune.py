"""In what way clients train: in how many processes, and how many together in one batch. It is measured.

The measure is a few steps of real training tasks with real samples, done by the client's side. So clients
that cannot train together are not measured as if they could. The frozen prefix is left out, since it is
computed once, in whatever way clients train.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedms.config import Config
from fedms.config.privacy import PrivacyConfig
from fedms.data.federated import federated
from fedms.data.partition import ClientSplit, Partition
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import TRAINING
from fedms.federation.messages import Task, Update
from fedms.federation.method import Stage
from fedms.federation.methods import of
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.together import batch_key, handle_together
from fedms.federation.world import World
from fedms.model.heads import zero_head

STACKS = (1, 4, 16)
"""Numbers of clients together that are measured; a larger one only where the one before it helped."""
TRIALS = 3
"""Rounds of training that are timed for each number; the first one warms up and does not count."""
EPOCHS = 2
"""Steps of each client in one of these rounds."""
LARGEST_SHARE = 0.03
"""Share of a run's training steps that measuring may take."""


@dataclass(frozen=True)
class Way:
    """One way to train clients."""

    workers: int
    """Processes"""
    stack: int
    """Clients that each process trains together, at most"""

    def __str__(self) -> str:
        together = "one at a time" if self.stack == 1 else f"{self.stack} together"
        return f"{together} in {'one process' if self.workers == 1 else f'{self.workers} processes'}"


@dataclass(frozen=True)
class Choice:
    """A way, and why it was chosen; the reason is empty where there was no choice."""

    way: Way
    why: str = ""


Measure = Callable[[Way], float]
"""From a way to milliseconds a sample."""


def decide(world: World, workers: int, measure: Measure, scratch: Path) -> Choice:
    """The fastest way that the config allows.

    With `deterministic`, clients train one at a time in the default number of processes. Every number of
    processes gives the same bits then, but to measure them would cost what it could gain.

    Args:
        workers: the default number of processes.
        scratch: a folder for temporary files.
    """
    config = world.config
    if config.deterministic:
        return Choice(Way(workers, 1))
    fixed, stage = config.engine, measured_stage(config)
    counts = [workers] if fixed.workers or workers == 1 else [1, workers]
    stacks = [fixed.stack] if fixed.stack else _candidates(world, stage, scratch)
    if stage is None or len(counts) == len(stacks) == 1:
        return Choice(Way(workers, stacks[0]))
    steps = sum(stacks[:2]) * TRIALS * EPOCHS * len(counts)
    if steps > LARGEST_SHARE * _planned(world):
        way = Way(workers, stacks[0])
        return Choice(way, f"clients train {way}: so short a run is not worth measuring others")
    return choose(counts, stacks, measure)


def choose(counts: Sequence[int], stacks: Sequence[int], measure: Measure) -> Choice:
    """The fastest of these numbers of processes and of these stacks, as measured.

    Where every way fails, it is the last number of processes, which is the default, and the smallest stack.
    """
    took: dict[Way, float] = {}
    for workers in counts:
        for before, stack in zip([None, *stacks], stacks, strict=False):
            if before and before > 1 and took[Way(workers, before)] >= took[Way(workers, stacks[0])]:
                break  # a larger stack will not be faster either
            took[Way(workers, stack)] = measure(Way(workers, stack))
    best = min([Way(counts[-1], stacks[0]), *took], key=lambda way: took[way])
    figures = ", ".join(f"{way} {figure:.2f}" for way, figure in took.items())
    return Choice(best, f"clients train {best}, the fastest as measured, in ms a sample: {figures}")


def measured(world: World, together: int, folder: Path) -> float:
    """Milliseconds a sample in which this process trains `together` clients of a first round together.

    Infinite where it cannot: a client fails, or a batch of several fails as a whole.
    """
    try:
        with Trial(world, folder, together) as trial:
            return min([trial.milliseconds() for _ in range(TRIALS)][1:])
    except Exception:  # such as exhausted memory; faults of the data will show when the run trains on them
        return math.inf


class Trial:
    """Training tasks for a few clients, each with the samples of one step, in a temporary folder."""

    def __init__(self, world: World, folder: Path, together: int) -> None:
        stage = measured_stage(world.config)
        assert stage is not None
        self._folder = folder / "measured"
        small = _first_batches(world)
        self._host = _CountingHost(small, self._folder)
        self._server, self._stage = _server(small, stage), stage
        self._clients = self._server.sampling.cohort(stage, 1)[:together]
        self._samples = sum(len(small.clients[client].train) for client in self._clients)

    def can_stack(self) -> bool:
        """Whether two of the clients can train in one batch."""
        keys = self._keys(self._tasks())
        return len(keys) - _alone(keys) > 1

    def milliseconds(self) -> float:
        """Time of one round, a sample."""
        tasks = self._tasks()
        expected = _alone(self._keys(tasks))
        self._host.alone = 0
        began = time.perf_counter()
        answers = handle_together(self._host, tasks)
        took = time.perf_counter() - began
        failed = [answer for answer in answers if not isinstance(answer, Update)]
        if failed or self._host.alone > expected:
            return math.inf
        self._server.record_delivery(tasks, [answer for answer in answers if isinstance(answer, Update)])
        return 1000 * took / (EPOCHS * self._samples)

    def _tasks(self) -> list[Task]:
        return self._server.tasks(TRAINING, self._clients, self._stage, 1, arrays=self._server.shared)

    def _keys(self, tasks: Sequence[Task]) -> list[object]:
        return [batch_key(self._host, task) for task in tasks]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._host.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _CountingHost(ClientHost):
    """Counts the tasks that are handled alone, which tells a batch that failed as a whole."""

    alone = 0

    def handle(self, task: Task) -> Update:
        self.alone += 1
        return super().handle(task)


def _alone(keys: Sequence[object]) -> int:
    """How many clients train alone by these keys."""
    return sum(key is None or keys.count(key) == 1 for key in keys)


def _first_batches(world: World) -> World:
    """The world with no more samples of each client than a step takes, and `EPOCHS` passes over them."""
    training = world.config.training
    size = training.batch_size
    clients = tuple(
        ClientSplit(each.name, each.train[:size], each.validation[:size], each.test[:size])
        for each in world.partition.clients
    )
    changes = {"training": training.model_copy(update={"epochs": EPOCHS}), "privacy": PrivacyConfig()}
    config = world.config.model_copy(update=changes)
    judged, parts = world.config.evaluation, Partition(clients)
    data = federated(world.dataset, parts, judged.splits, judged.everyone, world.config.seed)
    return World(config, world.dataset, parts, data, world.backbone, world.inputs, world.opened)


def _server(world: World, stage: Stage) -> Server:
    """A server as this stage's first round finds it, but for the values of the head."""
    recipe = recipe_for(world.config)
    server = Server(recipe, world.backbone, list(world.clients), world.ranks)
    server.shared |= zero_head(world.classes, world.backbone.feature_size)
    for each in recipe.stages[: recipe.stages.index(stage) + 1]:
        server.begin(each)
    return server


def _candidates(world: World, stage: Stage | None, scratch: Path) -> list[int]:
    """The stacks to measure; one client at a time where the clients cannot train in one batch."""
    sizes = [size for size in STACKS if stage and size <= _cohort(world, stage)]
    if len(sizes) < 2:
        return [1]
    try:
        with Trial(world, scratch, sizes[1]) as trial:
            return sizes if trial.can_stack() else [1]
    except Exception:  # it will show when the run trains
        return [1]


def measured_stage(config: Config) -> Stage | None:
    """The first stage that trains pairs or a head."""
    return next((stage for stage in of(config).stages if {"A", "B", "head"} & {*stage.trains}), None)


def _cohort(world: World, stage: Stage) -> int:
    """Clients of one round of the stage."""
    return world.config.federation.cohort_size(stage.budget, len(world.clients))


def _planned(world: World) -> int:
    """Training steps in the whole run, of all clients together."""
    config, training = world.config, world.config.training
    steps = sum(-(-len(client.train) // training.batch_size) for client in world.clients.values())
    rounds = {"global": config.federation.rounds_global, "local": config.federation.rounds_local}
    trained = sum(rounds[stage.budget] * _cohort(world, stage) for stage in of(config).stages)
    return round(trained * steps / len(world.clients) * training.epochs)
