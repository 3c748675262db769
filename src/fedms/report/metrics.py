"""A finished run, or a comparison of several, read from its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from fedms.errors import FedmsError


@dataclass(frozen=True)
class Run:
    """What a run folder says about itself."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    rounds: list[dict[str, Any]]
    """The lines of `metrics.jsonl`, in order."""
    result: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What comparison.json says (its schema: docs/architecture.md)."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    seeds: list[int]
    baseline: str
    """The row that the others are measured against."""
    methods: list[dict[str, Any]]
    """A row each, in order."""
    runs: list[dict[str, Any]]
    """A row and seed each: `row`, `seed`, `folder` (below this one), `result`."""
    tuning: dict[str, Any]
    """Empty where nothing was tuned."""


@dataclass(frozen=True)
class Span:
    """A stage on the time axis of all rounds: its first and last round, counted from 1 over the whole run."""

    stage: str
    first: int
    last: int


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        FedmsError: the folder is not there, the run did not finish, or a file of it is damaged.
    """
    if not folder.is_dir():
        raise FedmsError(f"{folder}: no such folder")
    # result.json comes first: it is written last, so its absence is the usual reason
    result = _read(folder, "result.json", json.loads)
    return Run(
        folder=folder,
        config=_read(folder, "config.yaml", yaml.safe_load),
        environment=_read(folder, "environment.json", json.loads),
        rounds=_read_rounds(folder),
        result=result,
    )


def is_comparison(folder: Path) -> bool:
    """Whether the folder is a comparison's, finished or not, and no run's."""
    return (folder / "comparison.json").exists() or (folder / "comparison.yaml").exists()


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison's folder.

    Raises:
        FedmsError: the folder is not there, the comparison did not finish, or its file is damaged.
    """
    if not folder.is_dir():
        raise FedmsError(f"{folder}: no such folder")
    said = _read(folder, "comparison.json", json.loads, "comparison")
    parts: dict[str, Any] = {field.name: said.get(field.name) for field in fields(Comparison) if field.name != "folder"}
    kinds = {"config": dict, "environment": dict, "seeds": list, "baseline": str, "methods": list, "runs": list, "tuning": dict}
    damaged = [key for key, kind in kinds.items() if not isinstance(parts[key], kind)]
    if not damaged:
        methods, runs = parts["methods"], parts["runs"]
        damaged += ["methods"] * (not methods or not all(_holds(row, ROW) for row in methods))
        damaged += ["runs"] * (not all(_holds(run, {"row": str, "seed": int, "folder": str, "result": dict}) for run in runs))
    if damaged:
        raise FedmsError(f"{folder / 'comparison.json'}: damaged: {damaged[0]} is not as it should be")
    return Comparison(folder=folder, **parts)


ROW: dict[str, type] = {
    "name": str,
    "method": str,
    "overrides": dict,
    "tuned": dict,
    "mean": dict,
    "std": dict,
    "best": dict,
    "frontier": list,
}
"""What every row of a comparison has, at least."""


def _holds(value: Any, kinds: Mapping[str, type]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


def number(record: Mapping[str, Any], key: str) -> float | None:
    """The finite number under `key`, or None where it is missing, null or not a number."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def spans(rounds: Iterable[Mapping[str, Any]]) -> list[Span]:
    """The stages in the order in which they ran."""
    out: list[Span] = []
    for position, record in enumerate(rounds, start=1):
        stage = str(record.get("stage", ""))
        if out and out[-1].stage == stage:
            out[-1] = Span(stage, out[-1].first, position)
        else:
            out.append(Span(stage, position, position))
    return out


def _read_rounds(folder: Path) -> list[dict[str, Any]]:
    def parse(text: str) -> dict[str, Any]:
        return {"lines": [json.loads(line) for line in text.splitlines() if line.strip()]}

    rounds: list[Any] = _read(folder, "metrics.jsonl", parse)["lines"]
    if not all(isinstance(record, dict) for record in rounds):
        raise FedmsError(f"{folder / 'metrics.jsonl'}: damaged: a line is not a record")
    return rounds


def _read(folder: Path, name: str, parse: Callable[[str], Any], what: str = "run") -> dict[str, Any]:
    path = folder / name
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FedmsError(f"{folder}: not a finished {what}: it has no {name}") from None
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, yaml.YAMLError):  # JSON and UTF-8 errors are ValueErrors
        raise FedmsError(f"{path}: damaged: not valid {'YAML' if path.suffix == '.yaml' else 'JSON'}") from None
    if not isinstance(value, dict):
        raise FedmsError(f"{path}: damaged: not a mapping of keys to values")
    return value
