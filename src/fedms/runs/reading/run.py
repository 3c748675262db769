"""The files of a run folder: the only place where they are read and checked, for every command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fedms.config.yaml import load_yaml
from fedms.core.errors import FedmsError
from fedms.core.paths import check_no_escape
from fedms.runs.reading.predictions import Predicted, read_predictions

CONFIG, ENVIRONMENT, METRICS, RESULT = "config.yaml", "environment.json", "metrics.jsonl", "result.json"
"""File names of the run folder."""
MOST_SAMPLES = 2**53
"""Largest count of samples that can be one. Pictures could not draw much larger ones."""
NUMBER_LIMIT = 1e30
"""Upper bound on every count of bytes or operations; a larger number in a file is damage."""
DEEPEST_NESTING = 50
"""Upper bound on levels of lists and mappings inside each other, in any file of a run."""


@dataclass(frozen=True)
class Run:
    """The content of a run's folder."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    rounds: list[dict[str, Any]]
    """The lines of `metrics.jsonl`, in order."""
    result: dict[str, Any]
    finished: bool = True
    """Whether the run has come to its result, which is empty before."""

    @property
    def rounds_done(self) -> int:
        """Finished rounds; an exchange of statistics is none."""
        return sum(1 for record in self.rounds if record.get("round"))

    @property
    def clients(self) -> list[dict[str, Any]]:
        """What the result says of each client."""
        return self.result.get("per_client") or []

    @cached_property
    def predictions(self) -> list[Predicted]:
        """What clients predicted for their own test samples; empty where their sites keep it.

        Raises:
            FedmsError: a file is damaged.
        """
        return read_predictions(self.folder, [client.get("name") for client in self.clients])


@dataclass(frozen=True)
class Span:
    """A stage with its first and last line of metrics.jsonl, counted from 1."""

    stage: str
    first: int
    last: int


def read_run(folder: Path, unfinished: bool = False) -> Run:
    """Read a run folder; with `unfinished` also one of a run that was stopped, failed, or still goes on.

    Raises:
        FedmsError: the folder is missing, holds no such run, or a file is damaged.
    """
    if not folder.is_dir():
        raise FedmsError(f"{folder}: no such folder")
    check_no_escape(folder)
    if unfinished and not (folder / RESULT).exists() and (folder / CONFIG).exists():
        begun = [name for name in (ENVIRONMENT, METRICS) if (folder / name).exists()]
        return Run(
            folder=folder,
            config=read_mapping(folder, CONFIG, load_yaml),
            environment=read_mapping(folder, ENVIRONMENT, json.loads) if ENVIRONMENT in begun else {},
            rounds=_rounds_so_far(folder) if METRICS in begun else [],
            result={},
            finished=False,
        )
    result = read_result(folder)  # first: a run writes this file last, so without it the run did not finish
    return Run(
        folder=folder,
        config=read_mapping(folder, CONFIG, load_yaml),
        environment=read_mapping(folder, ENVIRONMENT, json.loads),
        rounds=read_rounds(folder),
        result=result,
    )


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a run folder's result.json.

    Raises:
        FedmsError: the file is missing, which means that the run did not finish, or it is damaged.
    """
    result = read_mapping(folder, RESULT, json.loads)
    if damaged := damaged_in(result):
        raise FedmsError(f"{folder / RESULT}: damaged: {damaged} is not as it should be")
    return result


def number(record: Mapping[str, Any], key: str) -> float | None:
    """The number under `key`; None if it is missing, null, not a number, or beyond NUMBER_LIMIT."""
    value = record.get(key)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -NUMBER_LIMIT < value < NUMBER_LIMIT
    ):
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
    """The lines of a run folder's metrics.jsonl, in order.

    Raises:
        FedmsError: the file is missing or damaged.
    """
    return parse_rounds(_text(folder, METRICS, "run"), folder / METRICS)


def _rounds_so_far(folder: Path) -> list[dict[str, Any]]:
    """As `read_rounds`, without a last line that is still being written."""
    whole, _, _ = _text(folder, METRICS, "run").rpartition("\n")
    return parse_rounds(whole, folder / METRICS)


def parse_rounds(text: str, path: Path) -> list[dict[str, Any]]:
    """The records in lines of metrics.jsonl, which were read from `path`.

    Raises:
        FedmsError: a line is not the record of a round.
    """
    rounds: list[Any] = _parsed(
        text, path, lambda text: [json.loads(line) for line in text.splitlines() if line.strip()]
    )
    if not all(_is_round(record) for record in rounds):
        raise FedmsError(f"{path}: damaged: a line is not a round's record")
    return rounds


def _is_round(record: Any) -> bool:
    return isinstance(record, dict) and all(
        isinstance(record.get(key) or [], list) for key in ("cohort", "failures")
    )


def damaged_in(result: Mapping[str, Any]) -> str | None:
    """The first key of a result that holds a list or mapping of the wrong form; None if all are right.

    Keys may be missing.
    """
    for key in ("per_client", "frontier"):
        if not _all(result.get(key) or [], dict):
            return key
    return None if result.get("partition") is None or _is_partition(result["partition"]) else "partition"


def _is_partition(value: Any) -> bool:
    """Whether `classes` and `clients` are lists of names, and `counts` is [clients][classes] or empty."""
    if not isinstance(value, dict) or not all(_all(value.get(key), str) for key in ("classes", "clients")):
        return False
    rows, classes = value.get("counts") or [], len(value["classes"])
    whole = _all(rows, list) and all(
        _all(row, int) and len(row) == classes and all(0 <= n <= MOST_SAMPLES for n in row) for row in rows
    )
    return whole and len(rows) in (0, len(value["clients"])) and bool(classes or not rows)


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def read_mapping(folder: Path, name: str, parse: Callable[[str], Any], what: str = "run") -> dict[str, Any]:
    """The mapping in a file of a folder; `what` names the kind of folder, for the message.

    Raises:
        FedmsError: the file is missing, cannot be read, or is damaged.
    """
    path = folder / name
    value = _parsed(_text(folder, name, what), path, parse)
    if not isinstance(value, dict):
        raise FedmsError(f"{path}: damaged: not a mapping of keys to values")
    return value


def _text(folder: Path, name: str, what: str) -> str:
    path = folder / name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FedmsError(f"{folder}: not a finished {what}: it has no {name}") from None
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _invalid(path) from None


def _parsed(text: str, path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        value = parse(text)
    except (ValueError, RecursionError, yaml.YAMLError):  # JSON errors are ValueErrors
        raise _invalid(path) from None
    if not _is_well_formed(value):
        raise FedmsError(f"{path}: damaged: nested too deeply, or not text")
    return value


def _invalid(path: Path) -> FedmsError:
    return FedmsError(f"{path}: damaged: not valid {'YAML' if path.suffix == '.yaml' else 'JSON'}")


def _is_well_formed(value: Any) -> bool:
    """Whether the nesting is at most DEEPEST_NESTING, and every text can be encoded in UTF-8."""
    waiting, seen = [(value, 0)], set()
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, str) and not each.isascii() and each.encode(errors="replace").decode() != each:
            return False
        if isinstance(each, dict | list) and id(each) not in seen:
            if depth == DEEPEST_NESTING:
                return False
            seen.add(id(each))  # with YAML aliases, one value can occur in many places
            waiting += [
                (part, depth + 1) for part in ([*each, *each.values()] if isinstance(each, dict) else each)
            ]
    return True
