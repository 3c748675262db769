"""Measure local training on a GPU: samples a second of two models, and the share of the matrix peak.

    python bench/gpu.py                          # both models, one block and all blocks, float32 and bfloat16
    python bench/gpu.py --write                  # and write the table into docs/performance.md
    python bench/gpu.py --device cpu --tiny      # tiny models on a CPU: tests the script, gives no figures

100 clients with 64 made-up images each train for one round: one epoch in batches of 32, LoRA of rank 8 on
query and value, one client at a time and several in one batch. Weights are random, since speed does not
depend on them, and stand in a temporary folder. Nothing is downloaded. The frozen prefix is computed before
the clock starts. All ways take turns after a first turn that does not count; a figure is the median of the
turns. A way that needs more memory than the GPU has gets the rate 0. The peak is the fastest of several large
matrix products in each turn, in the same precision. The share of the peak uses the operations that fedms
counts (`model/flops.py`) in the fastest way. The last line of output is a JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.pages import PERFORMANCE, splice
from fedms.config import Config, load_config
from fedms.data.federated import Samples
from fedms.model.arrays import Arrays
from fedms.model.checkpoints import load_backbone
from fedms.model.heads import zero_head
from fedms.model.parts import fresh_lora, trained_names
from fedms.runs.environment import describe_environment
from fedms.training.device import prepare
from fedms.training.expert_training import Plan
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner
from stacking import members, train_round

MODELS = ("ViT-B/16", "CLIP ViT-B/16")
PRECISIONS = ("float32", "bfloat16")
STACKS = (1, 4, 16)
CLASSES = 10
PRODUCTS = 5
"""Large matrix products in each turn; the fastest is the peak."""


@dataclass(frozen=True)
class Size:
    """Sizes of the workload."""

    clients: int
    samples: int
    """Of each client"""
    batch: int
    product: int
    """Rows and columns of the matrices that measure the peak"""
    model: dict[str, int]


USUAL = Size(100, 64, 32, 8192, {})
TINY = Size(
    16,
    6,
    3,
    256,
    {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
    },
)


class Noise:
    """Made-up images; a row number always gives the same image."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), dtype=np.int64)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        draw = [torch.Generator().manual_seed(int(row)) for row in rows]
        return torch.stack([torch.randn(3, self.pixels, self.pixels, generator=each) for each in draw]), None


def write_model(name: str, size: Size, folder: Path) -> int:
    """Write a transformer with random weights, and return the side of its images in pixels."""
    import transformers as hf

    torch.manual_seed(0)
    base = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
    }
    keys = base | {"patch_size": 16} | size.model
    if name.startswith("CLIP"):
        hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**keys, projection_dim=512)).save_pretrained(
            folder
        )
    else:
        hf.ViTModel(hf.ViTConfig(**keys)).save_pretrained(folder)
    return keys["image_size"]


def settings(device: str, precision: str, size: Size, folder: Path) -> Config:
    return load_config(
        {
            "device": device,
            "precision": precision,
            "deterministic": False,
            "model": {"name": str(folder)},
            "partition": {"clients": size.clients},
            "federation": {"cohort": 1},
            "training": {"batch_size": size.batch},
        }
    )


class Case:
    """A model in one precision with `blocks` active blocks; its round can be repeated."""

    def __init__(self, model: str, config: Config, blocks: int | None, size: Size, pixels: int) -> None:
        self.model, self.config = model, config
        self.backbone = load_backbone(config.model, config.lora).to_device(
            config.device, getattr(torch, config.precision)
        )
        self.blocks = blocks or self.backbone.depth
        self.boundary = self.backbone.depth - self.blocks
        labels = torch.arange(size.samples) % CLASSES
        rows = [np.arange(size.samples) + size.samples * number for number in range(size.clients)]
        self.held = [Samples(f"bench-{number}", mine, labels) for number, mine in enumerate(rows)]
        self.runner = Runner(self.backbone, PrefixCache(self.backbone, Noise(pixels), 2**36, 0, Path()))
        for own in self.held:
            self.runner.cache.hidden(own, self.boundary, np.arange(1))
        active = range(self.boundary, self.backbone.depth)
        lora = fresh_lora(self.backbone, active, config.lora.rank, 0)
        self.arrays: Arrays = lora | zero_head(CLASSES, self.backbone.feature_size)
        self.plan = Plan(trained_names(self.backbone, ("A", "B", "head"), active, "linear"), (1e-3, 1e-3))
        self.flops = self._counted()
        self.took: dict[int, list[float]] = {stack: [] for stack in STACKS}
        self.peaks: list[float] = []

    def _counted(self) -> int:
        """Operations of a round in which each client trains alone."""
        self.runner.begin()
        self.round(1)
        return self.runner.flops

    def round(self, stack: int) -> None:
        """Train every client once, `stack` together. Each loss is read, so the GPU's queue ends empty."""
        made = members(self.config, self.arrays, self.plan, self.held, self.backbone.device)
        train_round(self.runner, made, stack, self.boundary, self.config.training)

    def turn(self, size: Size) -> None:
        self.peaks.append(peak(size.product, self.backbone.device, self.backbone.dtype))
        for stack, took in self.took.items():
            took.append(seconds(functools.partial(self.round, stack), self.backbone.device))

    def found(self) -> dict[str, Any]:
        samples = sum(map(len, self.held))
        middle = {stack: statistics.median(took) for stack, took in self.took.items()}
        top = statistics.median(self.peaks)
        return {
            "model": self.model,
            "blocks": self.blocks,
            "precision": self.config.precision,
            "samples_a_second": {stack: samples / took for stack, took in middle.items()},
            "gflop_a_sample": self.flops / samples / 1e9,
            "peak_tflops": top / 1e12,
            "share_of_peak": self.flops / min(middle.values()) / top,
        }


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the work, from an idle device to an idle device; infinite if its memory is not enough."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    try:
        wait()
        began = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - began
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return math.inf


def peak(rows: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: the best of several."""
    x, y = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
    return max(2 * rows**3 / seconds(lambda: torch.mm(x, y), device) for _ in range(PRODUCTS))


def measure(device: str, size: Size, repeats: int) -> list[dict[str, Any]]:
    """Measure the models one after the other; the cases of a model take turns."""
    found = []
    prepare(device, deterministic=False)
    for model in MODELS:
        with tempfile.TemporaryDirectory() as place:
            pixels = write_model(model, size, Path(place))
            configs = [settings(device, precision, size, Path(place)) for precision in PRECISIONS]
            cases = [Case(model, config, blocks, size, pixels) for blocks in (1, None) for config in configs]
            for number in range(1 + repeats):
                print(f"{model}: turn {number} of {repeats}", file=sys.stderr, flush=True)
                for case in cases:
                    case.turn(size)
                    if number == 0:  # warming up
                        case.peaks.clear()
                        for took in case.took.values():
                            took.clear()
            found += [case.found() for case in cases]
    return found


def table(found: list[dict[str, Any]]) -> str:
    """As Markdown."""
    ways = " | ".join("one at a time" if stack == 1 else f"{stack} together" for stack in STACKS)
    peaks = "GFLOP a sample | matrix peak, TFLOP/s | share of it"
    lines = [f"| model | active blocks | precision | {ways} | {peaks} |"]
    lines.append("|---|---:|---|" + "---:|" * (len(STACKS) + 3))
    for each in found:
        rates = " | ".join(
            f"{rate:.0f}" if rate else "no memory" for rate in each["samples_a_second"].values()
        )
        case = f"{each['model']} | {each['blocks']} | {each['precision']}"
        peaks = f"{each['gflop_a_sample']:.1f} | {each['peak_tflops']:.1f} | {each['share_of_peak']:.0%}"
        lines.append(f"| {case} | {rates} | {peaks} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, few clients")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: there is no CUDA GPU here; `--device cpu --tiny` shows that the script works")
    torch.set_num_threads(1)
    size = TINY if given.tiny else USUAL
    found = measure(given.device, size, given.repeats)
    environment = describe_environment(settings(given.device, "float32", size, Path()), 1)
    about = (
        f"{environment['device']}, {size.clients} clients with {size.samples} images each, samples a second; "
        f"medians of {given.repeats}."
    )
    text = f"{table(found)}\n\n{about}"
    print(text)
    if given.write:
        splice(PERFORMANCE, "table gpu", text)
    print(json.dumps({"measured": found, "repeats": given.repeats, "environment": environment}))


if __name__ == "__main__":
    main()
