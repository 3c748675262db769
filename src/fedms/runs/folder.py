"""The run folder, as an experiment writes it and resumes from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from fedms.config import Config, load_config
from fedms.config.comments import commented
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
from fedms.core.formatting import excerpt
from fedms.core.paths import NAME_RULE, check_no_escape, is_name
from fedms.federation.client_folder import ClientFolder, Version
from fedms.federation.identity import Identity
from fedms.model.kernels import KERNELS, Kernel
from fedms.runs.reading.run import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    RESULT,
    parse_rounds,
    read_result,
    read_rounds,
)

IDENTITY = "identity.json"
"""What the run was made from: fingerprints of data and model."""
ANOTHER_FOLDER_HINT = "name another folder with --out"
KEYS_WITHOUT_EFFECT: dict[str, Any] = {
    **dict.fromkeys(("log", "compare"), True),
    "engine": {"workers", "stack", "kernels", "superlink", "certificates", "secret", "patience_seconds"},
    "cache": {"enabled", "memory_mb", "disk_mb"},
    "federation": {"quorum", "deadline_seconds", "attempts"},
}
"""Keys that do not change a run's result, or change it only where clients fail. A resumed run may differ in
them."""
PLACES = ("start_from", "data.source", "model.name", "model.adapter", "evaluation.public")
"""Keys that may hold a path. One path typed in two ways is the same place."""
CHECKPOINTS = 2
"""Server checkpoints that are kept: the newest, and the one before it in case the newest is damaged."""


def refuse_used(path: Path) -> None:
    """Raise FedmsError unless the path is free: nothing is there, or an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FedmsError(f"{path}: already there and not empty; {ANOTHER_FOLDER_HINT}")


class RunFolder:
    """The folder that an experiment writes (its files are a contract: README, "The run folder")."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = hashlib.sha256()
        self._count = 0
        self._newest: dict[str, dict[str, Version]] = {}
        self._asked: set[str] = set()

    # start and resumption

    def _declare(self, config_yaml: str) -> None:
        """Write config.yaml, the first file. It marks the folder as a run folder."""
        if not (self.path / CONFIG).exists():
            write_bytes(self.path / CONFIG, config_yaml.encode())

    def describe(self, environment: Mapping[str, Any]) -> None:
        """Write environment.json, unless the run had written it before it was resumed."""
        if not (self.path / ENVIRONMENT).exists():
            write_json(self.path / ENVIRONMENT, environment)

    def kernel(self) -> Kernel | None:
        """The kernel of frozen products that the run began with; None if it did not begin.

        Raises:
            FedmsError: environment.json is damaged.
        """
        path = self.path / ENVIRONMENT
        if not path.exists():
            return None
        said = read_json(path)
        kernel = said.get("kernels", "torch") if isinstance(said, dict) else None
        if kernel not in KERNELS:
            raise FedmsError(f"{path}: damaged: it does not say which kernels the run uses")
        return kernel  # type: ignore[no-any-return]

    def identify(self, identity: Identity, config: Config) -> None:
        """Write identity.json, or check that nothing has changed since the run wrote it.

        Raises:
            FedmsError: data or model have changed; the line says what.
        """
        if (self.path / IDENTITY).exists():
            self.check_identity(identity, config)
        else:
            write_json(self.path / IDENTITY, identity.to_dict())

    def check_identity(self, identity: Identity, config: Config) -> None:
        """Raise FedmsError if data or model have changed since this run; the line says what."""
        if change := self.identity().change(identity, config):
            raise FedmsError(f"{self.path}: {change}; {ANOTHER_FOLDER_HINT}")

    def identity(self) -> Identity:
        """What the run was made from.

        Raises:
            FedmsError: identity.json is missing or damaged.
        """
        path = self.path / IDENTITY
        try:
            return Identity.of(read_json(path))
        except (KeyError, TypeError):
            raise FedmsError(f"{path}: damaged: it does not say what the run was made from") from None

    def admit(self, config: Config, resume: bool) -> None:
        """Raise unless a run with this config may start (or resume) in this folder.

        Raises:
            FedmsError: the folder is in use by another process, holds other files, or holds a run with
                another config.
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
        if begun:
            if differs := difference(self.path / CONFIG, config, KEYS_WITHOUT_EFFECT):
                raise FedmsError(
                    f"{self.path}: was run with another config: {differs}; {ANOTHER_FOLDER_HINT}"
                )
            if not resume:
                done = (self.path / RESULT).exists()
                hint = (
                    "holds this run, finished" if done else "already there and not empty; go on with --resume"
                )
                raise FedmsError(f"{self.path}: {hint}{';' if done else ', or'} {ANOTHER_FOLDER_HINT}")
        elif not resume:
            refuse_used(self.path)
        elif self.path.exists():
            held = self.path.iterdir() if self.path.is_dir() else [self.path]
            # a run that was killed before its first file was complete leaves temporary files
            if not all(is_leftover(path.name) for path in held):
                raise FedmsError(f"{self.path}: holds files that are no run's; {ANOTHER_FOLDER_HINT}")

    @contextmanager
    def claimed(self, config: Config, resume: bool, written: str | None = None) -> Iterator[None]:
        """Create the folder if it is missing and lock it for this process.

        Args:
            written: the YAML that the user wrote. Its comments are kept in config.yaml.

        Raises:
            FedmsError: as `admit`.
        """
        make_folder(self.path)
        with locked(self.path):
            self._admit(config, resume)
            sweep(self.path)
            shutil.rmtree(self.path / "cache", ignore_errors=True)
            self._declare(config.to_yaml() if written is None else commented(config, written))
            yield

    def config(self) -> Config:
        """The experiment's config, with every default filled in."""
        return load_config(self.path / CONFIG)

    # content

    @property
    def clients(self) -> Path:
        """Folder of all clients' folders."""
        return self.path / "clients"

    def client(self, name: str) -> ClientFolder:
        """The folder of one client. Raises FedmsError if the name could lead elsewhere."""
        if not is_name(name):
            raise FedmsError(f"{self.path}: {excerpt(repr(name))} cannot be a client's name: no {NAME_RULE}")
        return ClientFolder(self.clients / name)

    def _clients(self) -> dict[str, ClientFolder]:
        found = self.clients.iterdir() if self.clients.is_dir() else []
        return {path.name: ClientFolder(path) for path in sorted(found) if path.is_dir()}

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        append_line(self.path / METRICS, _line(record))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, read and checked as a report reads them."""
        return read_rounds(self.path)

    def keep_stage(self, stage: str, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Save the server's state at the end of a stage."""
        write_arrays(self._stage_path(stage), arrays, meta)

    def stage(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The server's state at the end of a stage: arrays and plain values."""
        return read_arrays(self._stage_path(stage))

    def _stage_path(self, stage: str) -> Path:
        return self.path / "server" / f"after-{stage}.safetensors"

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        write_json(self.path / RESULT, result)

    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None if it is missing or damaged.

        A resumed run writes a damaged one again.
        """
        try:
            return read_result(self.path)
        except FedmsError:
            return None

    def asked(self, clients: Iterable[str]) -> None:
        """Record that these clients may have written files since the last checkpoint.

        The next checkpoint looks only into their folders: a round of ten clients must not cost a look into
        the folder of every client.
        """
        self._asked.update(clients)

    # Checkpoint n is the state after n exchanges, with a digest of all lines of metrics.jsonl so far. The
    # lines themselves are in server/lines.jsonl, which grows with each exchange; inside the checkpoints,
    # every checkpoint would write all of them again.

    def checkpoint(
        self,
        number: int,
        arrays: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
    ) -> None:
        """Save checkpoint `number`, and append the new lines of metrics.jsonl to server/lines.jsonl."""
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
        """Set the folder back to the newest checkpoint that is not damaged.

        A checkpoint also counts as damaged if a client's file of that time is damaged or missing.

        Args:
            note: called with one line for each damaged checkpoint.

        Returns:
            The checkpoint's number, arrays and values. The values include `records`, the lines of
            metrics.jsonl up to this checkpoint. Without any checkpoint the number is 0 and the run starts
            from the beginning.
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
                lines = self._lines(number, **meta["lines"])
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
        records = parse_rounds(lines.decode(), self._lines_path)
        self._kept, self._count = hashlib.sha256(lines), len(records)
        self._newest = dict(meta["clients"])
        return number, arrays, {**meta, "records": records}

    def _lines(self, number: int, count: int, sha256: str) -> bytes:
        """The lines up to a checkpoint, from server/lines.jsonl or else from metrics.jsonl."""
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
        """Remove every checkpoint except this one and the one before it."""
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
    """The first key in which the config in the file differs, with both values; None if none does.

    `ignored` names keys in the form of pydantic's `exclude`.
    """
    try:
        there = load_config(path)
    except FedmsError:
        return "one that cannot be read"
    theirs, ours = (dict(_leaves(each.model_dump(exclude=ignored))) for each in (there, config))
    for values in (theirs, ours):
        values |= {key: canonical_place(values[key]) for key in PLACES if key in values}
    return next(
        (f"{key} {theirs[key]!r}, not {ours[key]!r}" for key in ours if theirs[key] != ours[key]), None
    )


def canonical_place(value: Any) -> Any:
    """One spelling for a path that exists, however it was typed; any other value as it is."""
    if not isinstance(value, str):
        return value
    path = os.path.expanduser(value)  # noqa: PTH111 - Path fails for an unknown user
    return os.path.realpath(path) if os.path.exists(path) else value  # noqa: PTH110


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
