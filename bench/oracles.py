"""Write into docs/method.md how much gates gain on constant weights: FedMS's, and any gate at most.

    python bench/oracles.py                            # the runs that `bench/choices.py` has left
    python bench/oracles.py --data DIR banking77       # one example

All is measured on the validation data of the runs that chose each example's settings. *Balanced* is the
largest mean of own and everyone's accuracy over the priors 0, .05 ... 1.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from choices import RUNS
from common.pages import ROOT, markdown_table, splice, spread
from fedms import load
from fedms.config import load_config
from fedms.federation.prediction import MixtureOutputs
from fedms.federation.world import World, open_world

PAGE = ROOT / "docs" / "method.md"
CHOSEN = {
    "assistant": "means + moving + two blocks",
    "banking77": "names + moving + two blocks",
}
"""Example -> the candidate with the example's settings."""
WEIGHTS = [step / 20 for step in range(21)]
TEXTS = {
    "knows where": "a gate that knows where a sample comes from",
    "knows the best weight": "a gate that knows the best weight of each sample",
    "FedMS": "the gate of FedMS",
    "counts": "label counts by the global expert's posterior alone",
}

Judged = list[tuple[MixtureOutputs, Tensor]]
"""What each client's parts say of samples, and their labels."""


def judged(world: World, folder: Path) -> Iterator[tuple[Judged, Tensor]]:
    """For each client its outputs on own and on everyone's validation data, and its label counts."""
    for name in world.clients:
        client = load(folder, name)
        held = []
        for samples in (world.samples(name, "validation"), world.everyone["validation"]):
            outputs = client.judge([world.dataset.inputs[row] for row in samples.rows])
            assert isinstance(outputs, MixtureOutputs)
            held.append((outputs, samples.labels))
        counts = np.bincount(world.samples(name, "train").labels.numpy(), minlength=world.classes)
        yield held, torch.tensor(counts, dtype=torch.float32)


def mean_hits(each: Sequence[Judged], place: int, hits: Callable[[MixtureOutputs, Tensor], Tensor]) -> float:
    """Mean over clients of the share of samples that are right; `place` 0 is own, 1 everyone's data."""
    return statistics.fmean(float(hits(*client[place]).float().mean()) for client in each)


def right(at: float) -> Callable[[MixtureOutputs, Tensor], Tensor]:
    """Which samples are classified right at a prior."""
    return lambda outputs, labels: outputs.log_probabilities(at).argmax(1) == labels


def ever_right(outputs: MixtureOutputs, labels: Tensor) -> Tensor:
    """Which samples are right at the weight that gives their label the most."""
    constant = replace(outputs, evidence=None)
    rows = torch.stack([constant.log_probabilities(weight) for weight in WEIGHTS])
    best = rows[:, torch.arange(len(labels)), labels].argmax(0)
    return rows[best, torch.arange(len(labels))].argmax(1) == labels


def balanced(each: Sequence[Judged]) -> float:
    """The largest mean of both accuracies over the priors."""
    return max(
        statistics.fmean(mean_hits(each, place, right(prior)) for place in (0, 1)) for prior in WEIGHTS
    )


def by_counts(each: Sequence[Judged], counts: Sequence[Tensor]) -> float:
    """`balanced` with log sum_c p_G(c) p_k(c) / q_c as evidence, at the best of a few scales."""
    everyone = torch.stack(list(counts)).sum(0)
    everyone = (everyone + 1) / (everyone + 1).sum()
    found = []
    for scale in (0.3, 0.6, 1.0):
        changed = []
        for client, own in zip(each, counts, strict=True):
            ratio = ((own + everyone) / (own.sum() + 1)) / everyone
            changed.append(
                [
                    (
                        replace(
                            outputs,
                            evidence=(outputs.global_logits.softmax(1) @ ratio).log(),
                            scales=[scale] * len(outputs.scales),
                        ),
                        labels,
                    )
                    for outputs, labels in client
                ]
            )
        found.append(balanced(changed))
    return max(found)


def gains(world: World, folder: Path) -> dict[str, float]:
    """Points of balanced accuracy above the best constant weight."""
    found = list(judged(world, folder))
    each, counts = [client for client, _ in found], [counts for _, counts in found]
    constant = [[(replace(outputs, evidence=None), labels) for outputs, labels in client] for client in each]
    base = balanced(constant)
    where = statistics.fmean(
        max(mean_hits(constant, place, right(weight)) for weight in WEIGHTS) for place in (0, 1)
    )
    values = {
        "knows where": where,
        "knows the best weight": statistics.fmean(mean_hits(each, place, ever_right) for place in (0, 1)),
        "FedMS": balanced(each),
        "counts": by_counts(each, counts),
    }
    return {name: 100 * (value - base) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help=f"default: {', '.join(CHOSEN)}")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    given = parser.parse_args()
    columns: dict[str, list[dict[str, float]]] = {}
    for example in given.examples or list(CHOSEN):
        for folder in sorted((RUNS / example / "runs").glob(f"{CHOSEN[example]}-[0-9]")):
            placed = [f"data.source={given.data.resolve() / example}"] if example != "assistant" else []
            world = open_world(load_config(folder / "config.yaml", placed))
            columns.setdefault(example, []).append(gains(world, folder))
            print(folder.name, columns[example][-1], flush=True)
    head = ["points above the best constant weight"]
    head += [f"{example}, {len(runs)} seed{'s' * (len(runs) > 1)}" for example, runs in columns.items()]
    rows = [
        [text, *(spread([run[line] for run in runs], 1, "+") for runs in columns.values())]
        for line, text in TEXTS.items()
    ]
    made = markdown_table(head, rows)
    print(made)
    splice(PAGE, "oracles", made)


if __name__ == "__main__":
    main()
