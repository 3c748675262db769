"""Measure the time of a round, and compare it with its arithmetic and with a plain PEFT loop.

    python bench/speed.py                            # the embedded corpus
    python bench/speed.py --data DIR                 # BANKING77, from DIR/banking77
    python bench/speed.py --data DIR --repeats 9 --write

One process, one thread, float32, MiniLM, LoRA of rank 8 on query and value, batches of 32. A round is one
epoch of ten clients. The programs take turns, `--repeats` times. A figure is the median of the turns; a ratio
is computed within one turn. The last line of output is a JSON object:

    full_lora_peft_seconds   the round as a PEFT user writes it: all blocks, random batches, dropout
    fedms_round_seconds      the round by number of active blocks k, through the engine, prefix cached
    fedms_prefix_seconds     time to fill that cache once, by k
    speedup_k1               full_lora_peft_seconds over fedms_round_seconds at k = 1
    floor_ratio              fedms_round_seconds over (operations / measured rate of matrix products), by k
    engine_overhead_share    share of a round of 100 clients outside the training steps
    import_seconds           `fedms --help`, whole process
    peak_memory_bytes        of this process
"""

from __future__ import annotations

import argparse
import json
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
from torch.nn import functional as F

from common.machine import with_machine
from common.pages import PERFORMANCE, splice
from fedms.config import Config, load_config
from fedms.engines.local import LocalEngine
from fedms.engines.memory import peak_memory
from fedms.federation.exchanges import EXCHANGES, local_training
from fedms.federation.messages import Update
from fedms.federation.methods import of
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import World, open_world
from fedms.model.checkpoints import locate
from fedms.model.kernels import KERNELS, FrozenLinear, has_onednn
from fedms.training.inputs import TextInputs

COHORT, MANY = 10, 100
Measure = Callable[[Path | None, int], dict[str, Any]]
"""Takes the data folder and the number of repeats, and returns the figures."""


def settings(data: Path | None, clients: int, blocks: int) -> Config:
    """FedMS's first stage with a fixed number of blocks."""
    keys = {
        "method": "sal-fixed",
        "partition": {"clients": clients, "alpha": 1.0},
        "federation": {"cohort": COHORT},
        "head": {"kind": "linear"},
        "activation": {"rule": "fixed", "blocks": blocks},
        "training": {"batch_size": 32, "learning_rate": 1e-3, "head_learning_rate": 2e-3},
        "engine": {"workers": 1},
        "data": {"source": str(data / "banking77")} if data else {},
    }
    return load_config(keys)


class Round:
    """A round of training that can be repeated through the engine."""

    def __init__(self, config: Config, folder: Path, cohort: int, world: World | None = None) -> None:
        self.world = world or open_world(config)
        self.world.backbone.use(config.engine.kernels)
        self.engine = LocalEngine(self.world, folder)
        self.stage = of(config).stages[0]
        self.server = Server(
            recipe_for(config, of(config)), self.world.backbone, list(self.world.clients), self.world.ranks
        )
        self.server.start_head(self.world.classes, None)
        self.server.begin(self.stage)
        self.cohort = self.server.clients[:cohort]
        self.flops = 0

    def __call__(self) -> None:
        tasks = self.server.tasks(EXCHANGES["train"], self.cohort, self.stage, 1, arrays=self.server.shared)
        updates = self.engine.run(tasks)
        self.server.record_delivery(tasks, [update for update in updates if isinstance(update, Update)])
        self.flops = 0
        for update in updates:
            assert isinstance(update, Update), update.reason
            self.flops += int(update.metrics["flops"])

    def samples(self) -> list[tuple[np.ndarray, torch.Tensor]]:
        """Row numbers and labels of the train split of each client of the round."""
        made = [self.world.samples(client, "train") for client in self.cohort]
        return [(each.rows, each.labels) for each in made]


def with_peft(world: World, clients: list[tuple[np.ndarray, torch.Tensor]]) -> Callable[[], None]:
    """The same round as a plain loop: each client trains one epoch in random batches from the same start."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    assert isinstance(world.inputs, TextInputs)
    inputs = world.inputs
    encoder = AutoModel.from_pretrained(locate("minilm"), use_safetensors=True)
    model = get_peft_model(encoder, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))
    head = torch.nn.Linear(encoder.config.hidden_size, world.classes)
    trained = [
        parameter for parameter in (*model.parameters(), *head.parameters()) if parameter.requires_grad
    ]
    start = [parameter.detach().clone() for parameter in trained]

    def run() -> None:
        model.train()
        for rows, labels in clients:
            with torch.no_grad():
                for parameter, value in zip(trained, start, strict=True):
                    parameter.copy_(value)
            optimizer = torch.optim.AdamW(trained, lr=1e-3)
            for picks in torch.split(torch.randperm(len(rows)), 32):
                ids, mask = inputs.batch(rows[picks.numpy()])
                seen = (
                    torch.ones(ids.shape, dtype=torch.long) if mask is None else (mask[:, 0, 0] == 0).long()
                )
                hidden = model(input_ids=ids, attention_mask=seen).last_hidden_state
                pooled = (hidden * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True)
                loss = F.cross_entropy(head(pooled), labels[picks])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    return run


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def gemm_rate() -> float:
    """Operations a second of a block's largest matrix product, for a usual batch, by the faster kernel: the
    best of eight tries of each.
    """
    x, layer = torch.randn(32 * 16, 384), FrozenLinear(384, 1536).requires_grad_(False)
    work = 50 * 2 * x.shape[0] * layer.weight.numel()

    def product() -> None:
        for _ in range(50):
            layer(x)

    rates = []
    for kernel in KERNELS if has_onednn() else KERNELS[:1]:
        layer.use(kernel)
        rates += [work / seconds(product) for _ in range(8)]
    return max(rates)


def overhead(config: Config, folder: Path, world: World) -> Callable[[], float]:
    """A function that measures the share of a round of many clients outside the training steps."""
    many = Round(config, folder, MANY, world)
    spent = 0.0
    train = local_training.train_expert  # type: ignore[attr-defined]

    def timed(*given: Any, **named: Any) -> float:
        nonlocal spent
        began = time.perf_counter()
        loss = train(*given, **named)
        spent += time.perf_counter() - began
        return loss

    def share() -> float:
        nonlocal spent
        local_training.train_expert, spent = timed, 0.0  # type: ignore[attr-defined]
        try:
            whole = seconds(many)
        finally:
            local_training.train_expert = train  # type: ignore[attr-defined]
        return 1 - spent / whole

    many()  # fills the cache
    return share


def help_shown() -> None:
    subprocess.run([sys.executable, "-m", "fedms.cli", "--help"], check=True, capture_output=True)


def measure(data: Path | None, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first = open_world(settings(data, 30, 1))
        depth = first.backbone.depth
        rounds = {
            k: Round(settings(data, 30, k), folder / str(k), COHORT, None if k > 1 else first)
            for k in range(1, depth + 1)
        }
        cold = {k: seconds(each) for k, each in rounds.items()}
        plain = with_peft(first, rounds[1].samples())
        share = overhead(settings(data, MANY, 1), folder / "many", open_world(settings(data, MANY, 1)))
        taken: dict[str, list[float]] = {}
        for number in range(repeats):
            print(f"turn {number + 1} of {repeats}", file=sys.stderr, flush=True)
            rate = gemm_rate()
            taken.setdefault("peft", []).append(seconds(plain))
            for k, each in rounds.items():
                taken.setdefault(f"k{k}", []).append(spent := seconds(each))
                taken.setdefault(f"floor{k}", []).append(spent / (each.flops / rate))
            taken.setdefault("speedup", []).append(taken["peft"][-1] / taken["k1"][-1])
            taken.setdefault("overhead", []).append(share())
            taken.setdefault("gemm", []).append(rate)
            taken.setdefault("import", []).append(seconds(help_shown))
        for each in rounds.values():
            each.engine.close()
    middle = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "data": "banking77" if data else "assistant",
        "samples": sum(len(rows) for rows, _ in rounds[1].samples()),
        "full_lora_peft_seconds": middle["peft"],
        "fedms_round_seconds": {str(k): middle[f"k{k}"] for k in rounds},
        "fedms_prefix_seconds": {str(k): cold[k] - middle[f"k{k}"] for k in rounds},
        "tflop": {str(k): each.flops / 1e12 for k, each in rounds.items()},
        "speedup_k1": middle["speedup"],
        "speedup_k1_range": [min(taken["speedup"]), max(taken["speedup"])],
        "floor_ratio": {str(k): middle[f"floor{k}"] for k in rounds},
        "gemm_gflops": middle["gemm"] / 1e9,
        "engine_overhead_share": middle["overhead"],
        "import_seconds": middle["import"],
        "peak_memory_bytes": peak_memory(),
        "repeats": repeats,
    }


def table(made: dict[str, Any]) -> str:
    """The figures as the page shows them."""
    lines = ["| program | seconds a round | TFLOP | over its floor |", "|---|---:|---:|---:|"]
    lines.append(f"| plain loop with PEFT, all blocks | {made['full_lora_peft_seconds']:.2f} | | |")
    for k, spent in made["fedms_round_seconds"].items():
        lines.append(
            f"| fedms, k = {k} | {spent:.2f} | {made['tflop'][k]:.2f} | {made['floor_ratio'][k]:.2f} |"
        )
    low, high = made["speedup_k1_range"]
    lines += [
        "",
        f"{made['data']}, {made['samples']} samples a round; medians of {made['repeats']} turns. At k = 1 "
        f"{made['speedup_k1']:.1f} times as fast as the plain loop ({low:.1f} to {high:.1f} by turn). "
        f"Matrix products ran at {made['gemm_gflops']:.0f} GFLOP/s. "
        f"Outside the training steps: {made['engine_overhead_share']:.1%} of a round of {MANY} clients. "
        f"`fedms --help`: {made['import_seconds']:.2f} s. "
        f"Peak memory {made['peak_memory_bytes'] / 2**30:.1f} GiB.",
    ]
    return "\n".join(lines)


def run_script(
    about: str | None, name: str, repeats: int, measure: Measure, table: Callable[[dict[str, Any]], str]
) -> None:
    """Parse the command line, measure, print the table and the JSON object; with --write, update the page."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder that holds banking77/; default: the embedded corpus"
    )
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/{PERFORMANCE.name}")
    given = parser.parse_args()
    made = measure(given.data.resolve() if given.data else None, given.repeats)
    print(table(made))
    if given.write:
        splice(PERFORMANCE, f"table {name}", with_machine(table(made)))
    print(json.dumps(made))


if __name__ == "__main__":
    run_script(__doc__, "speed", 5, measure, table)
