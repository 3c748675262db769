"""A plausible run folder in the form of `fedms run`: 12 clients, statistics, a global and a local stage."""

from __future__ import annotations

import csv
import json
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import HOSTILE, ROWS

from fedms.core.paths import is_name
from fedms.federation.exchanges.testing import PREDICTIONS
from fedms.runs.report.comparison.page import write_comparison_report
from fedms.runs.report.run.page import write_report

CLASSES = [f"intent {n}" for n in range(17)] + [
    "price in $ or $$",
    "<i>音楽</i>",
    "a class with a name that is far too long to be shown",
]
ENVIRONMENT = {"versions": {"fedms": "0.1.0", "torch": "2.13.0"}, "seed": 0, "cores": 2, "git_commit": None}
MakeRun = Callable[..., Path]


def make_result(clients: int = 12, seed: int = 0) -> dict[str, Any]:
    """A result.json with every key."""
    draw = random.Random(seed)
    names = [HOSTILE, *(f"client-{n:02}" for n in range(1, clients))]
    counts = [[draw.choice([0, 0, 0, 0, 2, 9, 30]) for _ in CLASSES] for _ in names]
    per_client = []
    for name, row in zip(names, counts, strict=True):
        own = draw.uniform(0.7, 1.0)
        share = draw.uniform(0.05, 0.5)
        per_client.append(
            {
                "name": name,
                "samples": sum(row),
                "accuracy_local": own,
                "accuracy_global": own - draw.uniform(0.05, 0.3),
                "gate_global_share": share,
            }
        )
    return {
        "method": "fedms",
        "seed": seed,
        "clients": clients,
        "rounds": 13,
        "accuracy_local": 0.88294,
        "accuracy_local_worst": 0.70512,
        "accuracy_global": 0.78464,
        "frontier": [
            {
                "prior": p / 10,
                "accuracy_local": 0.72 + 0.215 * (p / 10) ** 0.4,
                "accuracy_global": 0.82 - 0.40 * (p / 10) ** 3.5,
            }
            for p in range(11)
        ],
        "accuracy_base": 0.61,
        "gate_global_share": 0.2468,
        "trainable_parameters": 49152,
        "trainable_fraction": 0.00216,
        "uplink_bytes": 12_345_678,
        "downlink_bytes": 23_456_789,
        "evaluation_bytes": 3_400_000,
        "train_flops": 4.56e12,
        "evaluation_flops": 9.1e11,
        "evaluation_seconds": 20.5,
        "seconds": 128.4,
        "peak_memory_bytes": 812_000_000,
        "prior": 0.5,
        "per_client": per_client,
        "partition": {"classes": CLASSES, "clients": names, "counts": counts},
    }


def make_rounds(clients: int = 12) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    draw = random.Random(1)
    plan = [("statistics", 0), ("global", 10), ("local", 3), ("end", 0)]
    out = []
    for stage, rounds in plan:
        for at in range(1, rounds + 1) if rounds else [0]:  # an exchange that is not a round has number 0
            still = not rounds
            out.append(
                {
                    "stage": stage,
                    "round": at,
                    "rounds": rounds,
                    "active_blocks": 0 if still else 1 + at // 4 if stage == "global" else 3,
                    "cohort": [f"client-{n:02}" for n in range(1, min(5, clients))],
                    "failures": [{"client": HOSTILE, "kind": "error", "reason": "<i>lost</i>"}]
                    if (stage, at) == ("global", 5)
                    else [],
                    "train_loss": None if still else 1.2 / at + draw.uniform(0, 0.1),
                    "validation_score": None
                    if still
                    else (0.9 if stage == "local" else 0.6) + 0.02 * at + draw.uniform(-0.02, 0.02),
                    "uplink_bytes": 900_000,
                    "downlink_bytes": 0 if still else 1_700_000,
                    "evaluation_bytes": 240_000,
                    "train_flops": 3.2e11,
                    "seconds": draw.uniform(3, 9),
                }
            )
    return out


def write_predictions(run: Path, result: dict[str, Any]) -> None:
    """What each client that can have a folder predicted: right, but for the samples of one class."""
    for client in result["per_client"]:
        if not is_name(client["name"]):
            continue
        folder = run / "clients" / client["name"]
        folder.mkdir(parents=True)
        draw = random.Random(client["name"])
        lines = [
            [
                row,
                name,
                "intent 1" if name == "intent 0" else name,
                0.75,
                0.25,
                "intent 2",
                name,
                draw.random(),
            ]
            for row, name in enumerate(CLASSES)
        ]
        with (folder / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([PREDICTIONS, *lines])


def write_run(folder: Path, clients: int = 12, **changes: Any) -> Path:
    """Write a run folder; `changes` replace keys of its result."""
    folder.mkdir()
    config = {
        "seed": 0,
        "method": "fedms",
        "model": {"name": "minilm"},
        "data": {"source": "assistant"},
        "note": HOSTILE,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in make_rounds(clients))
    )
    result = {**make_result(clients), **changes}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    if clients <= 12:
        write_predictions(folder, result)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make a run folder with a name, a number of clients and changes to its result."""
    return lambda name="run", **changes: write_run(tmp_path / name, **changes)


@pytest.fixture
def run_folder(make_run: MakeRun) -> Path:
    return make_run()


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report, for tests that only read it."""
    folder = write_run(tmp_path_factory.mktemp("reported") / "run")
    write_report(folder)
    return folder


METRICS = (
    "accuracy_local",
    "accuracy_local_worst",
    "accuracy_global",
    "gate_global_share",
    "uplink_bytes",
    "downlink_bytes",
    "train_flops",
    "seconds",
    "trainable_fraction",
)


def write_comparison(
    folder: Path, rows: Sequence[str] = ROWS, seeds: Sequence[int] = (0, 1), clients: int = 6, **changes: Any
) -> Path:
    """Write a comparison's folder in the form of `fedms compare`; `changes` replace keys of every row."""
    (folder / "runs").mkdir(parents=True)
    methods, runs = [], []
    for at, name in enumerate(rows):
        results = []
        for seed in seeds:
            shift = 0.01 * at - 0.004 * seed
            better = {
                "accuracy_local": 0.88 + shift,
                "accuracy_global": 0.78 - 3 * shift,
                "method": name,
                "seed": seed,
            }
            results.append({**make_result(clients, seed=100 * at + seed), **better})
            run = write_run(folder / "runs" / f"row{at}-{seed}", **results[-1])
            runs.append(
                {"row": name, "seed": seed, "folder": str(run.relative_to(folder)), "result": results[-1]}
            )
        values = {metric: [result[metric] for result in results] for metric in METRICS}
        apart = {
            "difference": -0.0123,
            "low": -0.02,
            "high": -0.0051,
            "p": 0.0004,
            "pairs": 12,
            "distinguishable": True,
        }
        methods.append(
            {
                "name": name,
                "method": "fedms",
                "summary": "one of <many>",
                "paper": "",
                "overrides": {"gate.prior": 0.9} if name == "prior 0.9" else {},
                "tuned": {"training.local_learning_rate": 0.003},
                "mean": {metric: statistics.fmean(each) for metric, each in values.items()},
                "std": {
                    metric: statistics.stdev(each) if len(each) > 1 else None
                    for metric, each in values.items()
                },
                "versus_baseline": {
                    "accuracy_local": apart,
                    "accuracy_global": {**apart, "distinguishable": False},
                }
                if at
                else {},
                "best": {"accuracy_local": "best" if name == rows[-1] else "equal", "accuracy_global": ""},
                "frontier": make_result()["frontier"] if at != 2 else [],
                **changes,
            }
        )
    whole = {
        "config": {"seed": 0, "model": {"name": "minilm"}, "data": {"source": "assistant"}},
        "environment": ENVIRONMENT,
        "seeds": list(seeds),
        "baseline": "fedms",
        "methods": methods,
        "runs": runs,
        "tuning": {"grid": {"training.local_learning_rate": [0.001, 0.003]}},
    }
    (folder / "comparison.json").write_text(json.dumps(whole), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's folder with its report, for tests that only read it."""
    folder = write_comparison(tmp_path_factory.mktemp("compared") / "comparison")
    write_comparison_report(folder)
    return folder


@pytest.fixture
def make_comparison(tmp_path: Path) -> MakeRun:
    """Make a comparison's folder with rows, seeds and changes to every row."""
    return lambda **changes: write_comparison(tmp_path / "comparison", **changes)
