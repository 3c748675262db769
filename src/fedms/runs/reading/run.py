"""A finished run, or a comparison of several, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedms.config.yaml import load_yaml
from fedms.core.errors import FedmsError
from fedms.core.paths import check_no_escape

BEYOND = 1e30
"""No count of bytes or operations comes to it."""
DEEPEST = 50
"""Values within values at most, in a file of a run."""


@dataclass(frozen=True)
class FinishedRun:
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


def read_run(folder: Path) -> FinishedRun:
    """Read a run folder.

    Raises:
        FedmsError: the folder is not there, the run did not finish, or a file of it is damaged.
    """
    if not folder.is_dir():
        raise FedmsError(f"{folder}: no such folder")
    check_no_escape(folder)
    # result.json comes first: it is written last, so its absence is the usual reason
    result = read_mapping(folder, "result.json", json.loads)
    if damaged := damaged_in(result):
        raise FedmsError(f"{folder / 'result.json'}: damaged: {damaged} is not as it should be")
    return FinishedRun(
        folder=folder,
        config=read_mapping(folder, "config.yaml", load_yaml),
        environment=read_mapping(folder, "environment.json", json.loads),
        rounds=read_rounds(folder),
        result=result,
    )


def number(record: Mapping[str, Any], key: str) -> float | None:
    """The number under `key`, or None where it is missing, null, not a number, or one that nothing here can come to."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -BEYOND < value < BEYOND:
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
    if not all(_is_round(record) for record in rounds):
        raise FedmsError(f"{folder / 'metrics.jsonl'}: damaged: a line is not a round's record")
    return rounds


def _is_round(record: Any) -> bool:
    return isinstance(record, dict) and all(
        isinstance(record.get(key) or [], list) for key in ("cohort", "failures")
    )


def damaged_in(result: Mapping[str, Any]) -> str | None:
    """The first key of a result whose lists are not what they should be; None where all are. Keys may be missing."""
    for key in ("per_client", "frontier"):
        if not _all(result.get(key) or [], dict):
            return key
    return None if result.get("partition") is None or _is_partition(result["partition"]) else "partition"


def _is_partition(value: Any) -> bool:
    """Whether this names classes and clients, and counts as many numbers of each client as there are classes."""
    if not isinstance(value, dict) or not all(_all(value.get(key), str) for key in ("classes", "clients")):
        return False
    rows, classes = value.get("counts") or [], len(value["classes"])
    whole = _all(rows, list) and all(
        _all(row, int) and len(row) == classes and all(0 <= n < BEYOND for n in row) for row in rows
    )
    return whole and len(rows) in (0, len(value["clients"])) and bool(classes or not rows)


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


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
        raise FedmsError(
            f"{path}: damaged: not valid {'YAML' if path.suffix == '.yaml' else 'JSON'}"
        ) from None
    if not _is_plain(value):
        raise FedmsError(f"{path}: damaged: nested too deeply, or not text")
    if not isinstance(value, dict):
        raise FedmsError(f"{path}: damaged: not a mapping of keys to values")
    return value


def _is_plain(value: Any) -> bool:
    """Whether it is nested so that functions can follow, and its texts can be written (JSON can say half a character)."""
    waiting, seen = [(value, 0)], set()
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, str) and not each.isascii() and each.encode(errors="replace").decode() != each:
            return False
        if isinstance(each, dict | list) and id(each) not in seen:
            if depth == DEEPEST:
                return False
            seen.add(id(each))  # YAML's aliases make one value stand in many places
            waiting += [
                (part, depth + 1) for part in ([*each, *each.values()] if isinstance(each, dict) else each)
            ]
    return True
