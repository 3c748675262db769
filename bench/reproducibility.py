"""Measure the cost of MKL's conditional numerical reproducibility, for training and a frozen pass.

    python bench/reproducibility.py                 # 8 pairs of processes: some minutes
    python bench/reproducibility.py --write         # and write the table into docs/performance.md

MKL reads MKL_CBWR once, so each measurement is a new process. AUTO turns reproducibility on, as fedms does
by default; an empty value turns it off. Processes with and without it alternate, and each pair gives one
ratio of process times: time with AUTO over time without. A process repeats each workload and keeps the
fastest time, because other programs only make it slower. MiniLM, one thread, float32, batches of 32. The
last line of output is a JSON object with the ratios, the CPU and the load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.machine import cpu_name
from common.pages import PERFORMANCE, markdown_table, splice
from fedms.config import load_config
from fedms.core.reproducibility import REPRODUCIBLE, SETTING
from fedms.data.federated import Samples
from fedms.engines.memory import keep_freed_memory
from fedms.federation.world import World, open_world
from fedms.model.heads import zero_head
from fedms.model.parts import fresh_lora, trained_names
from fedms.runs.environment import describe_environment
from fedms.training.expert_training import Plan
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner
from stacking import clients, members, train_round

SAMPLES = 320
"""Ten steps of 32 samples."""
WAYS = {"on": REPRODUCIBLE, "off": ""}


def training_step(world: World, own: Samples, blocks: int, folder: Path) -> Callable[[], None]:
    """An epoch of one client with `blocks` active blocks and a cached prefix."""
    config, backbone = world.config, world.backbone
    boundary = backbone.depth - blocks
    active = range(boundary, backbone.depth)
    lora = fresh_lora(backbone, active, config.lora.rank, 0)
    arrays = lora | zero_head(world.classes, backbone.feature_size)
    plan = Plan(trained_names(backbone, ("A", "B", "head"), active, "linear"), (1e-3, 1e-3))
    runner = Runner(backbone, PrefixCache(backbone, world.inputs, 2**32, 0, folder))
    runner.cache.hidden(own, boundary, np.arange(1))

    def work() -> None:
        made = members(config, arrays, plan, [own], backbone.device)
        train_round(runner, made, 1, boundary, config.training)

    return work


def frozen_pass(world: World, own: Samples, folder: Path) -> Callable[[], None]:
    """The frozen backbone, all blocks, over the samples of one client."""
    backbone = world.backbone

    def work() -> None:
        cache = PrefixCache(backbone, world.inputs, 2**32, 0, folder)
        cache.hidden(own, backbone.depth, np.arange(1))
        cache.close()

    return work


def measure(repeats: int) -> dict[str, float]:
    """Fastest process time in seconds by workload, in this process; the first repeat does not count."""
    torch.set_num_threads(1)
    keep_freed_memory()
    world = open_world(load_config({}))
    (own,) = clients(world, 1, SAMPLES)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        depth = world.backbone.depth
        workloads = {
            "training step, 1 block": training_step(world, own, 1, folder / "1"),
            f"training step, {depth} blocks": training_step(world, own, depth, folder / "all"),
            "frozen pass": frozen_pass(world, own, folder / "frozen"),
        }
        taken: dict[str, list[float]] = {name: [] for name in workloads}
        for _ in range(1 + repeats):
            for name, work in workloads.items():
                began = time.process_time()
                work()
                taken[name].append(time.process_time() - began)
    return {name: min(times[1:]) for name, times in taken.items()}


def measure_apart(way: str, repeats: int) -> dict[str, float]:
    """The same in a new process, with MKL_CBWR set."""
    environment = os.environ | {SETTING: WAYS[way]}
    command = [sys.executable, __file__, "--here", "--repeats", str(repeats)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(pairs: int, repeats: int) -> dict[str, Any]:
    """Times and ratios of all pairs; the order within a pair alternates."""
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    loads = []
    for number in range(pairs):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            loads.append(os.getloadavg()[0])
            taken[way].append(measure_apart(way, repeats))
        print(f"pair {number + 1} of {pairs}", file=sys.stderr, flush=True)
    workloads: dict[str, Any] = {}
    for name in taken["on"][0]:
        on, off = ([times[name] for times in taken[way]] for way in WAYS)
        ratios = [one / other for one, other in zip(on, off, strict=True)]
        workloads[name] = {
            "ratio_median": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "ratio_of_fastest": min(on) / min(off),
            "seconds_on": on,
            "seconds_off": off,
        }
    return {"workloads": workloads, "cpu": cpu_name(), "load": [min(loads), max(loads)], "pairs": pairs}


def table(made: dict[str, Any]) -> str:
    """As Markdown: the cost as a ratio of process times."""
    rows = []
    for name, found in made["workloads"].items():
        low, high = found["ratio_range"]
        rows.append(
            [
                name,
                f"{found['ratio_median']:.3f}",
                f"{low:.3f} … {high:.3f}",
                f"{found['ratio_of_fastest']:.3f}",
            ]
        )
    low, high = made["load"]
    about = f"{made['cpu']}, load {low:.1f} to {high:.1f}; {made['pairs']} pairs of processes."
    head = ["time with AUTO / without", "median of pairs", "range", "fastest of all"]
    return f"{markdown_table(head, rows)}\n\n{about}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="of each workload in a process; default: 5")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.repeats)))
        return
    made = compare(given.pairs, given.repeats)
    print(table(made))
    if given.write:
        splice(PERFORMANCE, "table reproducibility", table(made))
    print(json.dumps({**made, "environment": describe_environment(load_config({}), 1)}))


if __name__ == "__main__":
    main()
