"""Files: the run folder, and what a client keeps. Atomic writes; safetensors and JSON, never pickle."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_arrays
from torch import Tensor

from fedms.config import Config, load
from fedms.errors import FedmsError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise FedmsError(f"{path}: not valid JSON") from None


def write_arrays(path: Path, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Arrays and plain values in one safetensors file."""
    plain = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
    write_bytes(path, save_arrays(plain, metadata={"fedms": json.dumps(dict(meta))}))


def read_arrays(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_arrays` wrote; FedmsError where the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return arrays, json.loads((file.metadata() or {})["fedms"])
    except FileNotFoundError:
        raise FedmsError(f"{path}: there is no such file") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FedmsError(f"{path}: damaged: {error}") from None


class ClientFolder:
    """What one client keeps on its own disk: files by kind, each versioned by (stage, round).

    A task of a round always reads what stood before that round, so a round that is run again gives the same result.
    The version written and the one before it are kept.
    """

    _name = re.compile(r"(?P<kind>[a-z]+)-(?P<stage>\d+)-(?P<round>\d+)\.safetensors")

    def __init__(self, path: Path) -> None:
        self.path = path

    def _versions(self, kind: str) -> dict[tuple[int, int], Path]:
        found = {}
        for path in self.path.glob(f"{kind}-*.safetensors"):
            if match := self._name.fullmatch(path.name):
                found[int(match["stage"]), int(match["round"])] = path
        return dict(sorted(found.items()))

    def load(self, kind: str, before: tuple[int, int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The newest of this kind from before (stage, round); empty where there is none."""
        older = [path for version, path in self._versions(kind).items() if version < before]
        return read_arrays(older[-1]) if older else ({}, {})

    def save(self, kind: str, at: tuple[int, int], arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        write_arrays(self.path / f"{kind}-{at[0]}-{at[1]}.safetensors", arrays, meta)
        older = [path for version, path in self._versions(kind).items() if version < at]
        for path in older[:-1]:
            path.unlink(missing_ok=True)


def refuse_used(path: Path) -> None:
    """FedmsError where a run folder is to be and something is there already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FedmsError(f"{path}: already there and not empty; name another folder with --out")


class RunFolder:
    """The folder that an experiment writes (its files are a contract: README, "The run folder")."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config_yaml: str, environment: Mapping[str, Any]) -> RunFolder:
        """A new run folder; FedmsError where something is there already."""
        refuse_used(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FedmsError(f"{path}: cannot be made: {error.strerror}") from None
        folder = cls(path)
        write_bytes(path / "config.yaml", config_yaml.encode())
        write_json(path / "environment.json", environment)
        return folder

    @property
    def clients(self) -> Path:
        return self.path / "clients"

    def client(self, name: str) -> ClientFolder:
        return ClientFolder(self.clients / name)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def checkpoint(self, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        write_arrays(self.path / "server" / "state.safetensors", arrays, meta)

    def keep_stage(self, stage: str, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """The server's state at the end of a stage."""
        write_arrays(self._stage_path(stage), arrays, meta)

    def stage(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return read_arrays(self._stage_path(stage))

    def _stage_path(self, stage: str) -> Path:
        return self.path / "server" / f"after-{stage}.safetensors"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise FedmsError(f"{path}: damaged: not JSON lines") from None

    def config(self) -> Config:
        """The experiment's config, every default filled in."""
        return load(self.path / "config.yaml")

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_json(self.path / "result.json", result)
