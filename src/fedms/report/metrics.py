"""A finished run, or a comparison of several, read from its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
    result = read_mapping(folder, "result.json", json.loads)
    return Run(
        folder=folder,
        config=read_mapping(folder, "config.yaml", yaml.safe_load),
        environment=read_mapping(folder, "environment.json", json.loads),
        rounds=read_rounds(folder),
        result=result,
    )


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


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's `metrics.jsonl`, in order.

    Raises:
        FedmsError: the file is not there or damaged.
    """

    def parse(text: str) -> dict[str, Any]:
        return {"lines": [json.loads(line) for line in text.splitlines() if line.strip()]}

    rounds: list[Any] = read_mapping(folder, "metrics.jsonl", parse)["lines"]
    if not all(isinstance(record, dict) for record in rounds):
        raise FedmsError(f"{folder / 'metrics.jsonl'}: damaged: a line is not a record")
    return rounds


def read_mapping(folder: Path, name: str, parse: Callable[[str], Any], what: str = "run") -> dict[str, Any]:
    """The mapping that a file of a folder holds; `what` is what the folder should be.

    Raises:
        FedmsError: the file is not there, cannot be read, or is damaged.
    """
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
