"""Show where the time of a round goes, with PyTorch's profiler.

    python bench/where.py                        # the embedded corpus
    python bench/where.py --data DIR --write     # BANKING77, from DIR/banking77, as in docs/performance.md

The rounds are those of `bench/speed.py`: ten clients with one active block, ten clients with all blocks, and
a hundred small clients with one block. Each round runs twice to warm up and `--repeats` times under the
profiler. Shares are shares of the wall time: a busy machine changes them less than it changes seconds. Time
outside PyTorch's operations is counted as Python's: training loop, modules, autograd's book-keeping, messages
and files. The last line of output is a JSON object.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from common.pages import markdown_table
from speed import COHORT, MANY, Round, run_script, settings

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("aten::_scaled_dot_product",),
    "GELU": ("aten::gelu",),
    "normalisation": ("aten::native_layer_norm", "aten::linalg_vector_norm"),
    "copies and zeros": (
        "aten::copy_",
        "aten::fill_",
        "aten::zero_",
        "aten::cat",
        "aten::pad_sequence",
        "aten::clone",
        "aten::_to_copy",
    ),
    "optimizer": ("aten::_fused_adamw_", "Optimizer."),
    "sums and products by element": (
        "aten::add",
        "aten::mul",
        "aten::sum",
        "aten::div",
        "aten::sub",
        "aten::lerp",
        "aten::square",
    ),
}
REST = "Python, autograd's book-keeping, messages, files"


def kind_of(operation: str) -> str | None:
    """The kind with the longest matching prefix; None for an operation of no kind."""
    fitting = [
        (len(start), kind)
        for kind, starts in KINDS.items()
        for start in starts
        if operation.startswith(start)
    ]
    return max(fitting)[1] if fitting else None


def shares(work: Round, repeats: int) -> dict[str, float]:
    """Share of the wall time by kind."""
    for _ in range(2):
        work()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        whole = time.perf_counter() - began
    found = dict.fromkeys(KINDS, 0.0)
    for each in seen.key_averages():
        if kind := kind_of(each.key):
            found[kind] += each.self_cpu_time_total / 1e6 / whole
    return {**found, REST: 1 - sum(found.values())}


def measure(data: Path | None, repeats: int) -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    made: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for clients, cohort, blocks in ((30, COHORT, 1), (30, COHORT, 6), (MANY, MANY, 1)):
            work = Round(settings(data, clients, blocks), Path(folder) / str(len(made)), cohort)
            made[f"{cohort} clients, k = {blocks}"] = shares(work, repeats)
            work.engine.close()
    return made


def table(made: dict[str, dict[str, float]]) -> str:
    rows = [[kind, *(f"{found[kind]:.1%}" for found in made.values())] for kind in (*KINDS, REST)]
    return markdown_table(["share of a round", *made], rows)


if __name__ == "__main__":
    run_script(__doc__, "where", 3, measure, table)
