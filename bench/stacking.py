"""Measure the gain of training several clients in one batch: samples a second, alone and stacked.

    python bench/stacking.py                     # both cases, with one block and with all blocks
    python bench/stacking.py --cases fleet --repeats 3
    python bench/stacking.py --write             # and write the table into docs/performance.md

Clients hold samples of the embedded corpus. The frozen prefix is computed before the clock starts. All stack
sizes take turns, and a figure is the median of the repeats. On a CPU the clock is process time of one thread,
so other programs do not count. The last line of output is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.machine import with_machine
from common.pages import PERFORMANCE, splice
from fedms.config import Config, load_config
from fedms.config.sections import TrainingConfig
from fedms.core import seeds
from fedms.data.federated import Samples
from fedms.engines.memory import keep_freed_memory
from fedms.federation.world import World, open_world
from fedms.model.arrays import Arrays
from fedms.model.expert import Expert
from fedms.model.heads import zero_head
from fedms.model.parts import fresh_lora, trained_names
from fedms.runs.environment import describe_environment
from fedms.training.batched import Member, train_stack
from fedms.training.expert_training import Plan, train_expert
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Cost, Runner

CASES = {"fleet": (40, 20), "banking": (10, 300)}
"""Number of clients, and samples of each: a fleet of small clients, and about BANKING77 over 30 clients."""
STACKS = (1, 2, 4, 8, 16)


def clients(world: World, count: int, size: int) -> list[Samples]:
    """`count` clients with `size` samples each, drawn at random."""
    for name in world.clients:
        world.open_client(name)
    made = []
    for number in range(count):
        rows = np.sort(np.random.default_rng(number).choice(len(world.dataset.labels), size, replace=False))
        made.append(Samples(f"bench-{number}", rows, torch.from_numpy(world.dataset.labels[rows])))
    return made


def members(
    config: Config, arrays: Arrays, plan: Plan, held: list[Samples], device: torch.device
) -> list[Member]:
    scale = config.lora.alpha / config.lora.rank
    return [
        Member(Expert(arrays, scale).to(device), plan, own, seeds.numpy_generator(0, own.owner), Cost())
        for own in held
    ]


def train_round(
    runner: Runner, held: list[Member], stack: int, boundary: int, training: TrainingConfig
) -> None:
    """Train each member once, `stack` members together."""
    for at in range(0, len(held), stack):
        if stack == 1:
            each = held[at]
            train_expert(runner, each.expert, each.plan, each.samples, boundary, training, each.order)
        else:
            train_stack(runner, held[at : at + stack], boundary, training)


def measure(
    world: World, case: str, blocks: int, stacks: list[int], repeats: int, share: float
) -> dict[str, Any]:
    """Samples a second by stack size, and the largest difference of an array from training alone."""
    config, backbone = world.config, world.backbone
    count, size = CASES[case]
    held = clients(world, max(max(stacks), round(count * share)), size)
    boundary = backbone.depth - blocks
    active = range(boundary, backbone.depth)
    arrays = fresh_lora(backbone, active, config.lora.rank, 0) | zero_head(
        world.classes, backbone.feature_size
    )
    plan = Plan(trained_names(backbone, ("A", "B", "head"), active, "linear"), (1e-3, 1e-3))
    clock = time.perf_counter if backbone.device.type == "cuda" else time.process_time
    took: dict[int, list[float]] = {stack: [] for stack in stacks}
    difference: dict[int, float] = {}
    alone: list[Arrays] = []
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(backbone, PrefixCache(backbone, world.inputs, 2**32, 0, Path(folder)))
        for own in held:
            runner.cache.hidden(own, boundary, np.arange(1))
        for _ in range(repeats):
            for stack in stacks:
                made = members(config, arrays, plan, held, backbone.device)
                began = clock()
                train_round(runner, made, stack, boundary, config.training)
                took[stack].append(clock() - began)
                arrived = [each.expert.arrays for each in made]
                alone = alone or arrived
                difference[stack] = max(
                    float((one[name] - two[name]).abs().max())
                    for one, two in zip(alone, arrived, strict=True)
                    for name in one
                )
    samples = len(held) * size
    rates = {stack: round(samples / statistics.median(times), 1) for stack, times in took.items()}
    return {
        "case": case,
        "clients": len(held),
        "samples": size,
        "blocks": blocks,
        "samples_a_second": rates,
        "difference": difference,
    }


def table(found: list[dict[str, Any]]) -> str:
    """As Markdown."""
    stacks = list(found[0]["samples_a_second"])
    lines = [
        "| clients | samples of each | blocks |"
        + "".join(f" {stack} together |" if stack > 1 else " alone |" for stack in stacks)
        + " largest difference |"
    ]
    lines.append("|---" * (len(stacks) + 4) + "|")
    for each in found:
        rates = "".join(f" {rate:.0f} |" for rate in each["samples_a_second"].values())
        apart = max(each["difference"].values())
        lines.append(f"| {each['clients']} | {each['samples']} | {each['blocks']} |{rates} {apart:.0e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--blocks", nargs="+", type=int, help="active blocks; default: one, and all")
    parser.add_argument("--stacks", nargs="+", type=int, default=list(STACKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="share of each case's clients that train; at least the largest stack",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    config = load_config({"device": given.device})
    world = open_world(config)
    stacks = sorted({1, *given.stacks})
    found = []
    print(
        f"{'case':10} blocks " + " ".join(f"{stack:>8}" for stack in stacks) + "   largest difference",
        flush=True,
    )
    for case in given.cases:
        for blocks in given.blocks or (1, world.backbone.depth):
            found.append(measure(world, case, blocks, stacks, given.repeats, given.share))
            rates, apart = found[-1]["samples_a_second"], max(found[-1]["difference"].values())
            print(
                f"{case:10} {blocks:6} "
                + " ".join(f"{rates[stack]:8.1f}" for stack in stacks)
                + f"   {apart:.1e}",
                flush=True,
            )
    if given.write:
        splice(PERFORMANCE, "table stacking", with_machine(table(found)))
    print(
        json.dumps(
            {"measured": found, "repeats": given.repeats, "environment": describe_environment(config, 1)}
        )
    )


if __name__ == "__main__":
    main()
