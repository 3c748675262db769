"""Accuracy under differential privacy on BANKING77: private sums, and personal models above them.

    python bench/private.py --data DIR                # both tables, of DIR/banking77; goes on if interrupted
    python bench/private.py --data DIR --sums         # the released sums alone: one pass over the texts
    python bench/private.py --data DIR --seeds 0 --epsilons 4    # some of the runs
    python bench/private.py --render                  # only write the tables, from what is there

Thirty clients release their sums once, with noise that they share under a secure sum of all of them. The
first table classifies everyone's test data by the released sums; it draws the noise of the whole sum several
times. The second one is of runs by the real protocol. Above the released discriminant each client trains a
head and a gate of its own on frozen features, and nothing of that leaves it. There the run's seed draws the
noise, so that the figures can be made again. Test data choose nothing. Both tables go into docs/privacy.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from common.pages import ROOT, markdown_table, splice, spread
from fedms import register
from fedms.config import Config, load_config
from fedms.core.files import write_json
from fedms.experiments import experiment
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import STATISTICS
from fedms.federation.exchanges.base import Expected
from fedms.federation.method import Method, Stage
from fedms.federation.private.noise import deviations, noisy
from fedms.federation.recipe import recipe_for
from fedms.federation.world import World, open_world
from fedms.model.noisy_sums import NoisySums
from fedms.model.statistics import FeatureSums, normalise
from fedms.runs.reading.run import RESULT

RUNS = ROOT / "runs" / "private"
SUMS = RUNS / "sums.json"
PAGE = ROOT / "docs" / "privacy.md"
CLIENTS, DRAWS = 30, 5
EPSILONS = (1.0, 2.0, 4.0, 8.0)
HEADS = Method(
    "fedms-heads",
    "FedMS with heads alone, on frozen features",
    None,
    (
        Stage("global", "global", "global", ("head",), ("head",), "none"),
        Stage("local", "local", "local", ("head", "gate"), ("gate",), "none"),
    ),
    "mixture",
    gate="learned",
)
METHODS = ("statistics", HEADS.name)
COMMON = (
    f"partition.clients={CLIENTS}",
    f"federation.cohort={CLIENTS}",
    "federation.rounds_global=0",
    "statistics.anchor=0",
    "statistics.second_moment=false",
    "gate.features=backbone",
    "gate.share=none",
    "head.kind=means",
    "head.rederive=never",
    "engine.workers=1",
)


def config_of(data: Path, method: str, epsilon: float | None, seed: int) -> Config:
    """The config of one run; without differential privacy where there is no epsilon."""
    keys = {"unit": "record", "epsilon": epsilon, "noise": "seeded", "secure_sum": "true", "least": CLIENTS}
    budget = [f"privacy.{key}={value}" for key, value in keys.items()] if epsilon is not None else []
    own = [f"data.source={data / 'banking77'}", f"method={method}", f"seed={seed}"]
    return load_config(ROOT / "examples" / "banking77.yaml", [*own, *COMMON, *budget])


# the released sums


def frozen_features(world: World, host: ClientHost, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All clients' normalised features of a split [n, d], and labels [n]."""
    features, labels = [], []
    for client in world.clients:
        samples = world.open_client(client).samples(client, split)
        host.runner.begin()
        found = host.runner.frozen_outputs("backbone", None, samples, world.backbone.depth)
        features.append(normalise(found.features))
        labels.append(samples.labels)
    return torch.cat(features), torch.cat(labels)


def measure_sums(data: Path) -> None:
    """Accuracy of the released sums on everyone's test data, at each budget and for each draw of noise."""
    world = open_world(config_of(data, "statistics", None, 0))
    host = ClientHost(world, RUNS / "sums", prefixes=RUNS / "prefixes")
    train, test = (frozen_features(world, host, split) for split in ("train", "test"))
    names = normalise(world.class_embeddings)

    def accuracy(means: torch.Tensor) -> float:
        found = (test[0] @ F.normalize(means.float(), dim=1).T).argmax(1)
        return float((found == test[1]).float().mean())

    sums = FeatureSums.of(*train, world.classes, second=False)
    size = sums.sums.shape[1]
    made = {"names": [accuracy(names)], "no noise": [accuracy(sums.sums)]}
    for epsilon in EPSILONS:
        recipe = recipe_for(config_of(data, "statistics", epsilon, 0))
        spreads = STATISTICS.spreads(Expected(recipe, world.backbone, world.classes, 0, 0, {}))
        noise = {name: each * math.sqrt(CLIENTS) for name, each in deviations(recipe, spreads).items()}
        for draw in range(DRAWS):
            exact = {"statistics.counts": sums.counts, "statistics.sums": sums.sums}
            found = noisy(exact, noise, draw.to_bytes(32, "big"))
            released = NoisySums(
                found["statistics.counts"].double(),
                found["statistics.sums"].double(),
                None,
                noise["statistics.counts"],
                noise["statistics.sums"],
            )
            for way, means in (
                ("drawn to names", released.discriminant(None, names).means),
                ("alone", released.sums),
            ):
                made.setdefault(f"{epsilon:g} {way}", []).append(accuracy(means))
    host.close()
    write_json(SUMS, {"samples": len(train[1]), "size": size, "accuracy": made})


def table_of_sums() -> str:
    """A column a budget."""
    made = json.loads(SUMS.read_text())["accuracy"]
    rows = [
        [f"released sums, {way}", *(spread(made[f"{epsilon:g} {way}"]) for epsilon in EPSILONS)]
        for way in ("drawn to names", "alone")
    ]
    for name, title in (("names", "class names alone"), ("no noise", "sums without noise")):
        rows.append([title, *[spread(made[name])] * len(EPSILONS)])
    return markdown_table(["accuracy on everyone's test data, ε", *map("{:g}".format, EPSILONS)], rows)


# the runs


def folder_of(method: str, epsilon: float | None, seed: int | str) -> Path:
    """Where this run is."""
    return RUNS / f"{method}-{'none' if epsilon is None else f'{epsilon:g}'}-{seed}"


def results(method: str, epsilon: float | None) -> list[dict[str, Any]]:
    """Of all seeds that are there."""
    found = sorted(RUNS.glob(f"{folder_of(method, epsilon, '*').name}/{RESULT}"))
    return [json.loads(path.read_text()) for path in found]


def table_of_runs() -> str:
    """A row a budget that has runs of both methods."""
    rows = []
    for epsilon in (*EPSILONS, None):
        alone, heads = (results(method, epsilon) for method in METHODS)
        if not (alone and heads):
            continue
        cells = [[each["accuracy_global_shared"] for each in heads]]
        for key in ("accuracy_local", "accuracy_global"):
            cells += [[each[key] for each in of] for of in (alone, heads)]
        name = "no privacy" if epsilon is None else f"{epsilon:g}"
        rows.append([name, str(len(heads)), *map(spread, cells)])
    head = ["ε", "seeds", "released head, everyone's", "statistics, own", "FedMS heads, own"]
    return markdown_table([*head, "statistics, everyone's", "FedMS heads, everyone's"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with banking77")
    parser.add_argument("--sums", action="store_true", help="the released sums alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[*EPSILONS, math.inf])
    parser.add_argument("--render", action="store_true")
    chosen = parser.parse_args(arguments)
    register(HEADS)
    if not chosen.render:
        if chosen.data is None:
            parser.error("--data is needed to run; --render writes the tables alone")
        torch.set_num_threads(1)
        if not SUMS.exists():
            measure_sums(chosen.data)
        for seed in [] if chosen.sums else chosen.seeds:
            for epsilon in (None if math.isinf(each) else each for each in chosen.epsilons):
                for method in METHODS:
                    config = config_of(chosen.data, method, epsilon, seed)
                    folder = folder_of(method, epsilon, seed)
                    experiment.run(config, folder, resume=True, prefixes=RUNS / "prefixes")
    for name, table in (("private sums", table_of_sums), ("private runs", table_of_runs)):
        made = table()
        splice(PAGE, name, made)
        print(made)


if __name__ == "__main__":
    main()
