"""The run folder, and what a client keeps: which files there are, and which of them a run goes on from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from fedms.config import Config, load_config
from fedms.core.errors import FedmsError
from fedms.core.files import (
    append_line,
    is_leftover,
    locked,
    make_folder,
    read_arrays,
    read_json,
    remove,
    sweep,
    write_arrays,
    write_bytes,
    write_json,
)
from fedms.core.formatting import plain
from fedms.core.paths import RULE, check_no_escape, is_name
from fedms.federation.client_folder import ClientFolder, Version

CONFIG, ENVIRONMENT, METRICS, RESULT = "config.yaml", "environment.json", "metrics.jsonl", "result.json"
ELSEWHERE = "name another folder with --out"
HOW: dict[str, Any] = {
    **dict.fromkeys(("engine", "log", "compare"), True),
    "cache": {"enabled", "memory_mb", "disk_mb"},
    "federation": {"quorum", "deadline_seconds", "attempts"},
}
"""Keys that do not change what a run comes to, or only where clients fail."""
CHECKPOINTS = 2
"""Checkpoints of the server that are kept: the newest, and one to go on from where that is damaged."""


def refuse_used(path: Path) -> None:
    """FedmsError where a folder is to be and something is there already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FedmsError(f"{path}: already there and not empty; {ELSEWHERE}")


class RunFolder:
    """The folder that an experiment writes (its files are a contract: README, "The run folder")."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = hashlib.sha256()
        self._count = 0
        self._newest: dict[str, dict[str, Version]] = {}
        self._asked: set[str] = set()

    # whose it is

    @classmethod
    def create(cls, path: Path, config_yaml: str, environment: Mapping[str, Any]) -> RunFolder:
        """A new run folder; FedmsError where something is there already."""
        refuse_used(path)
        make_folder(path)
        folder = cls(path)
        folder._declare(config_yaml)
        folder.describe(environment)
        return folder

    def _declare(self, config_yaml: str) -> None:
        """The first file, which says that the folder is a run's."""
        if not (self.path / CONFIG).exists():
            write_bytes(self.path / CONFIG, config_yaml.encode())

    def describe(self, environment: Mapping[str, Any]) -> None:
        """Say what the run is made with, if it has not been said yet."""
        if not (self.path / ENVIRONMENT).exists():
            write_json(self.path / ENVIRONMENT, environment)

    def admit(self, config: Config, resume: bool) -> None:
        """Nothing, where a run with this config may begin in the folder, or with `resume` go on.

        Raises:
            FedmsError: it is used already, or holds something else, or a run with another config, or one that is going on now.
        """
        if self.path.is_dir():
            with locked(self.path):
                self._admit(config, resume)
        else:
            self._admit(config, resume)

    def _admit(self, config: Config, resume: bool) -> None:
        if self.path.is_dir():
            check_no_escape(self.path)
        begun = (self.path / CONFIG).exists()
        if not resume and begun:
            raise FedmsError(f"{self.path}: already there and not empty; go on with --resume, or {ELSEWHERE}")
        if not resume:
            refuse_used(self.path)
        elif begun:
            if differs := difference(self.path / CONFIG, config, HOW):
                raise FedmsError(f"{self.path}: was run with another config: {differs}; {ELSEWHERE}")
        elif self.path.exists():
            held = self.path.iterdir() if self.path.is_dir() else [self.path]
            if not all(
                is_leftover(path.name) for path in held
            ):  # of a run that was killed before its first file was whole
                raise FedmsError(f"{self.path}: holds files that are no run's; {ELSEWHERE}")

    @contextmanager
    def claimed(self, config: Config, resume: bool) -> Iterator[None]:
        """The folder, made where it is not there, for this process alone; FedmsError as from `admit`."""
        make_folder(self.path)
        with locked(self.path):
            self._admit(config, resume)
            sweep(self.path)
            shutil.rmtree(self.path / "cache", ignore_errors=True)
            self._declare(config.to_yaml())
            yield

    def config(self) -> Config:
        """The experiment's config, every default filled in."""
        return load_config(self.path / CONFIG)

    # what is in it

    @property
    def clients(self) -> Path:
        return self.path / "clients"

    def client(self, name: str) -> ClientFolder:
        if not is_name(name):
            raise FedmsError(f"{self.path}: {plain(repr(name))} cannot be a client's name: no {RULE}")
        return ClientFolder(self.clients / name)

    def _clients(self) -> dict[str, ClientFolder]:
        found = self.clients.iterdir() if self.clients.is_dir() else []
        return {path.name: ClientFolder(path) for path in sorted(found) if path.is_dir()}

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        append_line(self.path / METRICS, _line(record))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path / METRICS
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise FedmsError(f"{path}: damaged: not JSON lines") from None

    def keep_stage(self, stage: str, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """The server's state at the end of a stage."""
        write_arrays(self._stage_path(stage), arrays, meta)

    def stage(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return read_arrays(self._stage_path(stage))

    def _stage_path(self, stage: str) -> Path:
        return self.path / "server" / f"after-{stage}.safetensors"

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_json(self.path / RESULT, result)

    def result(self) -> dict[str, Any] | None:
        """What the run came to; None where it is not finished."""
        try:
            return dict(read_json(self.path / RESULT))
        except (FedmsError, TypeError, ValueError):
            return None

    def asked(self, clients: Iterable[str]) -> None:
        """These may have written something since the last checkpoint. To look at everybody's folder would make a round of ten cost as
        many looks as there are clients."""
        self._asked.update(clients)

    # checkpoints: number n is the state after n exchanges, with a digest of all the lines of metrics.jsonl up to there. The lines
    # themselves are in a file of their own, which grows by each exchange's: in the checkpoints they would be written again each time

    def checkpoint(
        self,
        number: int,
        arrays: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep the state, and those lines of metrics.jsonl that come with it."""
        make_folder(self._lines_path.parent)
        for record in records:
            line = _line(record)
            append_line(self._lines_path, line)
            self._kept.update(f"{line}\n".encode())
        self._count += len(records)
        self._newest |= {
            name: newest for name in sorted(self._asked) if (newest := self.client(name).newest())
        }
        self._asked.clear()
        lines = {"count": self._count, "sha256": self._kept.hexdigest()}
        write_arrays(self._checkpoint_path(number), arrays, {**meta, "clients": self._newest, "lines": lines})
        self._forget_checkpoints(number)

    def go_back(self, note: Callable[[str], None]) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        """The newest checkpoint that is whole, with all that clients kept then, and the folder as it was at that moment.

        `note` hears of each that is not whole. Number 0, and nothing, where there is none: then all begins anew. Among the values are
        the `records` of metrics.jsonl up to there.
        """
        found: tuple[int, dict[str, Tensor], dict[str, Any]] = 0, {}, {"clients": {}}
        lines = b""
        for number in sorted(self._checkpoints(), reverse=True):
            try:
                arrays, meta = read_arrays(self._checkpoint_path(number))
                kept = {
                    name: {kind: tuple(at) for kind, at in newest.items()}
                    for name, newest in meta["clients"].items()
                }
                for name, newest in kept.items():
                    self.client(name).check(newest)
                lines = self._lines(number, **meta.get("lines", {}))
                found = number, arrays, {**meta, "clients": kept}
                break
            except FedmsError as error:
                note(f"{error}; going on from before it")
        number, arrays, meta = found
        self._forget_checkpoints(number)
        for name, folder in self._clients().items():
            folder.rewind(meta["clients"].get(name, {}))
        for path in (self._lines_path, self.path / METRICS):
            write_bytes(path, lines)
        records = [json.loads(line) for line in lines.splitlines()]
        self._kept, self._count = hashlib.sha256(lines), len(records)
        self._newest = dict(meta["clients"])
        return number, arrays, {**meta, "records": records}

    def _lines(self, number: int, count: int = 0, sha256: str = "") -> bytes:
        """The lines up to a checkpoint, from whichever file still holds them."""
        for path in (self._lines_path, self.path / METRICS):
            with suppress(OSError):
                lines = b"".join(path.read_bytes().splitlines(keepends=True)[:count])
                if hashlib.sha256(lines).hexdigest() == sha256:
                    return lines
        raise FedmsError(f"{self._lines_path}: damaged: no longer the lines of checkpoint {number}")

    @property
    def _lines_path(self) -> Path:
        return self.path / "server" / "lines.jsonl"

    def _forget_checkpoints(self, number: int) -> None:
        """Remove all but this one and those right before it."""
        held = self._checkpoints()
        for other in held - set(sorted(each for each in held if each <= number)[-CHECKPOINTS:]):
            remove(self._checkpoint_path(other))

    def _checkpoint_path(self, number: int) -> Path:
        return self.path / "server" / f"state-{number}.safetensors"

    def _checkpoints(self) -> set[int]:
        names = [
            path.stem.removeprefix("state-") for path in (self.path / "server").glob("state-*.safetensors")
        ]
        return {int(name) for name in names if name.isdecimal()}


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False)


def difference(path: Path, config: Config, ignored: dict[str, Any]) -> str | None:
    """The first key in which the config in the file differs, with both values; None where it does not."""
    try:
        there = load_config(path)
    except FedmsError:
        return "one that cannot be read"
    theirs, ours = (dict(_leaves(each.model_dump(exclude=ignored))) for each in (there, config))
    return next(
        (f"{key} {theirs[key]!r}, not {ours[key]!r}" for key in ours if theirs[key] != ours[key]), None
    )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
