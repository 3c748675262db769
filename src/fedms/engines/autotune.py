"""In what way clients train: in how many processes, and how many of them together in one batch. Measured, where it may be.

What is measured are a few steps with real samples, and experts as the first stage begins with. The frozen prefix is not in it: that
is computed once, whatever the way.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedms.config import Config
from fedms.core import seeds
from fedms.data.federated import Samples
from fedms.federation.method import Stage, rates
from fedms.federation.methods import of
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import World
from fedms.model.arrays import Arrays
from fedms.model.expert import Expert
from fedms.model.heads import zero_head
from fedms.model.parts import fresh_lora, trained_names
from fedms.training.batched import Member, train_stack
from fedms.training.expert_training import Plan, train_expert
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Cost, Runner

STACKS = (1, 4, 16)
"""Numbers of clients together that are measured; a larger one where the one before it was faster than none."""
PASSES = (1, 2, 2)
"""Steps of each client each time that is measured; the first time is for warming up."""
WORTH = 0.03
"""Share of a run's steps that measuring may take."""


@dataclass(frozen=True)
class Way:
    """One way to train clients."""

    workers: int
    """Processes"""
    stack: int
    """Clients that each trains together at most"""

    def __str__(self) -> str:
        many = "one at a time" if self.stack == 1 else f"{self.stack} together"
        return f"{many} in {'one process' if self.workers == 1 else f'{self.workers} processes'}"


@dataclass(frozen=True)
class Choice:
    """A way, and why; nothing where there was no choice."""

    way: Way
    why: str = ""


Measure = Callable[[Way], float]
"""From a way to milliseconds a sample."""


def decide(world: World, workers: int, measure: Measure) -> Choice:
    """The way that takes least of those that the config allows; `workers` processes are what there is by default.

    With `deterministic`, clients train one at a time, and in as many processes as by default: all numbers of them come to the same, and
    to measure them would cost what it could gain.
    """
    config = world.config
    if config.deterministic:
        return Choice(Way(workers, 1))
    fixed, stage = config.engine, _stage(config)
    counts = [workers] if fixed.workers or workers == 1 else [1, workers]
    stacks = (
        [fixed.stack]
        if fixed.stack
        else [size for size in STACKS if stage and size <= _cohort(config, stage)] or [1]
    )
    if stage is None or len(counts) == len(stacks) == 1:
        return Choice(Way(workers, stacks[0]))
    if sum(stacks[:2]) * sum(PASSES) * len(counts) > WORTH * _planned(world):
        way = Way(workers, stacks[0])
        return Choice(way, f"clients train {way}: so short a run is not worth measuring others")
    return choose(counts, stacks, measure)


def choose(counts: Sequence[int], stacks: Sequence[int], measure: Measure) -> Choice:
    """The fastest of these numbers of processes and of these stacks, as they are measured."""
    took: dict[Way, float] = {}
    for workers in counts:
        for before, stack in zip([None, *stacks], stacks, strict=False):
            if before and before > 1 and took[Way(workers, before)] >= took[Way(workers, stacks[0])]:
                break  # nor will a larger one be faster
            took[Way(workers, stack)] = measure(Way(workers, stack))
    best = min(took, key=lambda way: took[way])
    figures = ", ".join(f"{way} {figure:.2f}" for way, figure in took.items())
    return Choice(best, f"clients train {best}, the fastest as measured, in ms a sample: {figures}")


def measured(world: World, together: int, folder: Path) -> float:
    """Milliseconds a sample in which this process trains so many clients of the first round together; infinite where it cannot."""
    config = world.config
    stage = _stage(config)
    assert stage is not None
    server = Server(recipe_for(config), world.backbone, list(world.clients), world.ranks)
    batch = config.training.batch_size
    cache = PrefixCache(world.backbone, world.inputs, config.cache.memory_mb * 2**20, 0, folder / "measured")
    runner, boundary, blocks = Runner(world.backbone, cache), server.boundary(stage), server.active(stage)
    arrays = fresh_lora(world.backbone, blocks, config.lora.rank, config.seed)
    arrays |= zero_head(world.classes, world.backbone.feature_size)
    names = [
        name
        for name in trained_names(world.backbone, stage.trains, blocks, config.head.kind)
        if name in arrays
    ]
    plan = Plan(names, rates(stage, config.training))
    samples = [world.samples(client, "train") for client in server.sampling.cohort(stage, 1)[:together]]
    samples = [Samples(own.owner, own.rows[:batch], own.labels[:batch]) for own in samples]

    def train(passes: int) -> float:
        training = config.training.model_copy(update={"epochs": passes})
        began = time.perf_counter()
        members = [
            Member(_expert(world, arrays), plan, own, seeds.numpy_generator(0, "measured"), Cost())
            for own in samples
        ]
        if together == 1:
            train_expert(runner, members[0].expert, plan, samples[0], boundary, training, members[0].order)
        else:
            train_stack(runner, members, boundary, training)
        return 1000 * (time.perf_counter() - began) / (passes * sum(map(len, samples)))

    try:
        return min([train(passes) for passes in PASSES][1:])
    except (
        Exception
    ):  # such as memory that runs out; whatever is wrong with the samples will show when they are trained on
        return math.inf
    finally:
        cache.close()
        shutil.rmtree(folder / "measured", ignore_errors=True)


def _expert(world: World, arrays: Arrays) -> Expert:
    lora = world.config.lora
    return Expert(arrays, lora.alpha / lora.rank).to(world.backbone.device)


def _stage(config: Config) -> Stage | None:
    """The first stage that trains pairs or head."""
    return next((stage for stage in of(config).stages if {"A", "B", "head"} & {*stage.trains}), None)


def _cohort(config: Config, stage: Stage) -> int:
    federation = config.federation
    return (
        federation.cohort if stage.budget == "global" else federation.cohort_local or config.partition.clients
    )


def _planned(world: World) -> int:
    """Steps of training in the whole run, all clients together."""
    config, training = world.config, world.config.training
    steps = sum(-(-len(client.train) // training.batch_size) for client in world.clients.values()) / len(
        world.clients
    )
    rounds = {"global": config.federation.rounds_global, "local": config.federation.rounds_local}
    return round(
        sum(rounds[stage.budget] * _cohort(config, stage) for stage in of(config).stages)
        * steps
        * training.epochs
    )
