"""A comparison's folder: whose it is, and which runs are in it already."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedms.config import Config, load
from fedms.errors import FedmsError
from fedms.store import refuse_used, write_bytes

DECLARED = "comparison.yaml"
"""The comparison's config, every default filled in: what makes a folder a comparison's."""
ELSEWHERE = "name another folder with --out"
HOW = {"engine", "cache", "log", "compare"}
"""Keys that do not change what a run comes to."""


@contextmanager
def claimed(out: Path, config: Config) -> Iterator[None]:
    """The folder, made or gone on with, for this process alone.

    Raises:
        FedmsError: it holds something else, another comparison, or one that is going on now.
    """
    if (out / DECLARED).exists():
        if differs := difference(out / DECLARED, config, HOW | {"seed", "method"}):
            raise FedmsError(f"{out}: holds a comparison with another config: {differs}; {ELSEWHERE}")
    else:
        refuse_used(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FedmsError(f"{out}: cannot be made: {error.strerror}") from None
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the process ends, however it does
        write_bytes(out / DECLARED, config.to_yaml().encode())
        yield
    except BlockingIOError:
        raise FedmsError(f"{out}: another process is comparing in this folder") from None
    finally:
        os.close(handle)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether this run is there, whole; False where it is not, or was only begun.

    Raises:
        FedmsError: something else is in its place.
    """
    if not folder.exists():
        return False
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    if all(name.startswith(".config.yaml.") for name in held):  # killed before the first file was whole
        return False
    if "config.yaml" not in held:
        raise FedmsError(f"{folder}: holds files that are not this comparison's; {ELSEWHERE}")
    if differs := difference(folder / "config.yaml", config, HOW):
        raise FedmsError(f"{folder}: was run with another config: {differs}; {ELSEWHERE}")
    return "result.json" in held


def difference(path: Path, config: Config, ignored: set[str]) -> str | None:
    """The first key in which the config in the file differs, with both values; None where it does not."""
    try:
        there = load(path)
    except FedmsError:
        return "one that cannot be read"
    theirs, ours = (dict(_leaves(each.model_dump(exclude=ignored))) for each in (there, config))
    return next((f"{key} {theirs[key]!r}, not {ours[key]!r}" for key in ours if theirs[key] != ours[key]), None)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
