"""The files of a comparison's folder: the only place where they are read and checked."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedms.core.errors import FedmsError
from fedms.core.paths import check_no_escape, is_name
from fedms.runs.reading.measures import ACCURACY, Measure, measure_of
from fedms.runs.reading.run import damaged_in, number, read_mapping, read_rounds

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True)
class SeedRun:
    """One run of a row."""

    seed: Any
    folder: str
    rounds: list[dict[str, Any]]
    """The lines of its metrics.jsonl; empty if its folder is gone."""
    result: dict[str, Any]


@dataclass(frozen=True)
class RowResults:
    """A row of a comparison over all seeds: a method or a variant of one."""

    name: str
    record: dict[str, Any]
    """Its entry in comparison.json."""
    runs: list[SeedRun]

    def mean(self, metric: str) -> float | None:
        """The mean over seeds."""
        return number(mapping(self.record, "mean"), metric)

    def spread(self, metric: str) -> float | None:
        """The standard deviation over seeds."""
        return number(mapping(self.record, "std"), metric)

    def standing(self, metric: str) -> str:
        """`best`, `equal` (not distinguishable from the best) or an empty text."""
        return str(mapping(self.record, "best").get(metric) or "")

    def versus_baseline(self, metric: str) -> dict[str, Any]:
        """The difference from the baseline with its interval."""
        return mapping(mapping(self.record, "versus_baseline"), metric)

    def frontier(self, measure: Measure = ACCURACY) -> list[tuple[float, float, float]]:
        """(prior, everyone's, own), sorted by prior."""
        points = [
            (prior, everyone, own)
            for point in records(self.record.get("frontier"))
            if (prior := number(point, "prior")) is not None
            and (everyone := number(point, measure.everyone)) is not None
            and (own := number(point, measure.own)) is not None
        ]
        return sorted(points)


@dataclass(frozen=True)
class Comparison:
    """The content of a comparison's folder. docs/architecture.md has the schema of comparison.json."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    rows: list[RowResults]
    baseline: RowResults
    """The row with which the others are compared."""
    seeds: list[int]
    tuning: dict[str, Any]
    """Empty if nothing was tuned."""
    unfinished: str = ""
    """What a reader must know of a comparison that is not finished."""

    @property
    def measure(self) -> Measure:
        """By what its rows are compared."""
        return measure_of(self.config)


@dataclass(frozen=True)
class Moment:
    """A row after a round: means over its seeds."""

    stage: str
    round: int
    """Counted from 1 over the whole run, without exchanges of statistics."""
    score: float | None
    spread: float | None
    uplink_bytes: float
    train_flops: float
    active_blocks: float | None


def is_comparison(folder: Path) -> bool:
    """Whether this is the folder of a comparison, finished or not."""
    return (folder / COMPARISON_FILE).exists() or (folder / "comparison.yaml").exists()


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison's folder.

    Raises:
        FedmsError: the folder is missing, the comparison did not finish, or a file is damaged.
    """
    if not folder.is_dir():
        raise FedmsError(f"{folder}: no such folder")
    check_no_escape(folder)
    return comparison_of(folder, read_mapping(folder, COMPARISON_FILE, json.loads, what="comparison"))


def comparison_of(folder: Path, said: dict[str, Any], unfinished: str = "") -> Comparison:
    """A comparison from what comparison.json says, or would say now if it is not finished.

    Raises:
        FedmsError: it does not have the form of a comparison, or a file of a run is damaged.
    """
    damaged = [key for key, kind in COMPARISON_KEYS.items() if not isinstance(said.get(key), kind)]
    if not damaged:
        damaged += ["methods"] * (
            not said["methods"] or not all(_holds(row, ROW_KEYS) for row in said["methods"])
        )
        damaged += ["runs"] * (not all(_is_run(run) for run in said["runs"]))
    if damaged:
        raise FedmsError(f"{folder / COMPARISON_FILE}: damaged: {damaged[0]} is not as it should be")
    rows = [
        RowResults(
            row["name"], row, [_seed_run(folder, run) for run in said["runs"] if run["row"] == row["name"]]
        )
        for row in said["methods"]
    ]
    baseline = next((row for row in rows if row.name == said["baseline"]), rows[0])
    return Comparison(
        folder, said["config"], said["environment"], rows, baseline, said["seeds"], said["tuning"], unfinished
    )


COMPARISON_KEYS = {
    "config": dict,
    "environment": dict,
    "seeds": list,
    "baseline": str,
    "methods": list,
    "runs": list,
    "tuning": dict,
}
ROW_KEYS = {
    "name": str,
    "method": str,
    "overrides": dict,
    "tuned": dict,
    "mean": dict,
    "std": dict,
    "best": dict,
    "frontier": list,
}
RUN_KEYS = {"row": str, "seed": int, "folder": str, "result": dict}
"""Keys and types that comparison.json, its rows and its runs must have."""


def _holds(value: Any, kinds: Mapping[str, type]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


def _is_run(value: Any) -> bool:
    """Whether this is a run of a comparison, in a folder inside the comparison's folder."""
    return (
        _holds(value, RUN_KEYS)
        and not damaged_in(value["result"])
        and all(map(is_name, value["folder"].split("/")))
    )


def mapping(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping under `key`; an empty one if the value is missing or not a mapping."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def records(value: Any) -> list[dict[str, Any]]:
    """The mappings in a list; empty if the value is not a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def moments(row: RowResults) -> list[Moment]:
    """A row's rounds in order, each averaged over the seeds that reached it."""
    seen: dict[int, list[tuple[dict[str, Any], float, float]]] = {}
    for run in row.runs:
        rounds, uplink, flops = 0, 0.0, 0.0
        for line in run.rounds:
            uplink += number(line, "uplink_bytes") or 0.0
            flops += number(line, "train_flops") or 0.0
            if number(line, "round"):
                rounds += 1
                seen.setdefault(rounds, []).append((line, uplink, flops))
    return [_moment(at, seen[at]) for at in sorted(seen)]


def unlikeness(counts: Sequence[Sequence[float]]) -> list[float]:
    """Total variation between each client's class shares and everyone's, from 0 to 1 (no common class).

    Args:
        counts: [clients][classes].
    """
    everyone = _shares([sum(column) for column in zip(*counts, strict=True)])
    return [
        sum(abs(own - other) for own, other in zip(_shares(row), everyone, strict=True)) / 2 for row in counts
    ]


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _moment(at: int, lines: Sequence[tuple[dict[str, Any], float, float]]) -> Moment:
    scores = [score for line, *_ in lines if (score := number(line, "validation_score")) is not None]
    blocks = [active for line, *_ in lines if (active := number(line, "active_blocks")) is not None]
    return Moment(
        stage=str(lines[0][0].get("stage", "")),
        round=at,
        score=statistics.fmean(scores) if scores else None,
        spread=statistics.stdev(scores) if len(scores) > 1 else None,
        uplink_bytes=statistics.fmean(uplink for _, uplink, _ in lines),
        train_flops=statistics.fmean(flops for *_, flops in lines),
        active_blocks=statistics.fmean(blocks) if blocks else None,
    )


def _seed_run(folder: Path, record: Mapping[str, Any]) -> SeedRun:
    at = folder / record["folder"]
    return SeedRun(
        record["seed"],
        record["folder"],
        read_rounds(at) if (at / "metrics.jsonl").exists() else [],
        record["result"],
    )
