"""What a run or a comparison would do, and about how long it would take: `--dry-run`. Nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fedms.config import Config
from fedms.core.errors import ConfigError
from fedms.engines.autotune import measured, measured_stage
from fedms.engines.local import worker_count
from fedms.engines.registry import REMOTE
from fedms.experiments.comparison.compare import run_of, trials_of
from fedms.experiments.comparison.plan import PlannedRun, plan
from fedms.experiments.comparison.rows import rows
from fedms.federation.method import Stage
from fedms.federation.methods import find
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import World, open_world
from fedms.model import flops
from fedms.runs.result import trainable_parameters

PICTURE_TOKENS = 197
"""Tokens of a picture of 224 pixels in patches of 16. The forecast hangs little on it: tokens of all parts
are alike."""
SAMPLE = 512
"""Samples of which the mean length is taken, at most"""
WITHOUT_EFFECT_ON_WORLD = {
    *("method", "federation", "training", "activation", "head", "statistics", "gate", "mixture"),
    *("cache", "engine", "log", "compare"),
}
"""Sections in which configs may differ and have the same data, partition and model"""


@dataclass(frozen=True)
class Forecast:
    """What the runs of one name would do."""

    name: str
    runs: int
    """How many there are, as of a row with several seeds"""
    clients: int
    samples: int
    stages: tuple[tuple[str, int, int], ...]
    """Name, rounds, and clients of a round"""
    parameters: int
    """Numbers that training may change in one client's model"""
    operations: int
    """Of one run, counted by formula with the blocks that are active at first"""
    seconds: float | None
    """Of one run; None where no training step can be timed"""


def forecast_run(config: Config) -> list[Forecast]:
    """The forecast of one run.

    Raises:
        FedmsError: as the run would, from the config, the data or the model.
    """
    config = find(config.method).configure(config)
    return _forecasts([PlannedRun("", f"{config.method}, seed {config.seed}", config)])


def forecast_comparison(config: Config) -> list[Forecast]:
    """The forecasts of a comparison, one for each row, each candidate of tuning, and each first stage that
    rows share.

    What tuning will choose is not known: rows are forecast with the first candidate.

    Raises:
        FedmsError: as the comparison would, from the config, the data or the model.
    """
    compared = rows(config)
    trials = {row.name: trials_of(row, config) for row in compared}
    tuning = {row.name: {"chosen": row.grid(config)[0]} for row in compared if trials[row.name]}
    tried = plan([run for runs in trials.values() for run, _ in runs])
    wanted = [run_of(row, seed, config, trials, tuning) for seed in config.compare.seeds for row in compared]
    planned = {run.folder: run for run in [*plan(wanted), *tried]}
    return _forecasts([*planned.values()])


def _forecasts(planned: Sequence[PlannedRun]) -> list[Forecast]:
    """One forecast for each name; the runs of a name differ in their seeds alone."""
    by_name: dict[str, list[PlannedRun]] = {}
    for run in planned:
        by_name.setdefault(run.label.rpartition(", seed")[0], []).append(run)
    worlds: dict[str, World] = {}
    rates: dict[str, float | None] = {}
    made = []
    for name, runs in by_name.items():
        config = runs[0].config
        if config.engine.name in REMOTE:
            raise ConfigError(f"engine.name: {config.engine.name} has its data elsewhere; allowed: local")
        key = config.model_dump_json(exclude=WITHOUT_EFFECT_ON_WORLD)
        if key not in worlds:
            worlds[key] = open_world(config)
        world = replace(worlds[key], config=config)
        if rates.get(key) is None:
            rates[key] = _seconds_per_operation(world)
        made.append(_forecast(name, runs, world, rates[key]))
    return made


def _forecast(name: str, runs: Sequence[PlannedRun], world: World, rate: float | None) -> Forecast:
    config, server = world.config, _server(world)
    clients = len(world.clients)
    trained = server.recipe.stages[1 if runs[0].first else 0 :]
    operations = _operations(world, server, trained)
    workers = min(worker_count(config), clients)
    return Forecast(
        name=name,
        runs=len(runs),
        clients=clients,
        samples=world.sample_count,
        stages=tuple(
            (stage.name, server.recipe.rounds(stage), config.federation.cohort_size(stage.budget, clients))
            for stage in trained
        ),
        parameters=trainable_parameters(world, server),
        operations=operations,
        seconds=None if rate is None else rate * operations / workers,
    )


def _server(world: World) -> Server:
    return Server(recipe_for(world.config), world.backbone, list(world.clients), world.ranks)


def _operations(world: World, server: Server, stages: Iterable[Stage]) -> int:
    """Operations of a run that trains these stages: training, validation, statistics and the test.

    Outputs of frozen blocks count once a sample, since they are kept.
    """
    config, backbone, recipe = world.config, world.backbone, server.recipe
    tokens, clients = _tokens(world), world.clients.values()
    train, validation, test = (
        sum(len(getattr(each, split)) for each in clients) for split in ("train", "validation", "test")
    )
    everyone = len(world.everyone["test"].rows) if "test" in world.everyone else 0
    total = flops.forward(backbone, train + validation + test + everyone, tokens, 0)
    for stage in stages:
        share = config.federation.cohort_size(stage.budget, len(clients)) / len(clients)
        passes = recipe.rounds(stage) * share
        total += round(passes * config.training.epochs * train * _step(server, stage, tokens))
        judged = recipe.rounds(stage) / config.evaluation.every if stage.expert == "global" else passes
        total += round(judged * flops.forward(backbone, validation, tokens, server.boundary(stage)))
    above = server.boundary(recipe.last_stage)
    experts = recipe.has_global + recipe.has_local
    tested = test + len(clients) * everyone * recipe.has_local + everyone
    return total + experts * flops.forward(backbone, tested, tokens, above)


def _step(server: Server, stage: Stage, tokens: int) -> int:
    """Operations of a training step, a sample."""
    backbone, rank, active = server.backbone, server.config.lora.rank, server.active(stage)
    forward = flops.forward(backbone, 1, tokens, server.boundary(stage))
    pairs = flops.pairs(backbone, 1, tokens, rank, active)
    return forward + pairs + flops.backward(backbone, 1, tokens, rank, active)


def _seconds_per_operation(world: World) -> float | None:
    """From training steps that are timed here; None for a method without such steps."""
    stage = measured_stage(world.config)
    counted = _step(_server(world), stage, _tokens(world)) if stage else 0
    if not counted:
        return None
    with TemporaryDirectory() as folder:
        took = measured(world, 1, Path(folder)) / 1000
    return took / counted if math.isfinite(took) else None


def _tokens(world: World) -> int:
    """Mean tokens of a sample."""
    if world.backbone.kind == "image":
        return PICTURE_TOKENS
    rows = np.concatenate([client.train for client in world.clients.values()])[:SAMPLE]
    for name in world.clients:
        world.open_client(name)
    return max(1, round(float(world.inputs.lengths(rows).mean())))
