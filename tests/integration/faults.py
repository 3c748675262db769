"""A file layer that fails: it stands in for the `os` of `fedms.files`, whose calls are all the points at
which a write can fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTS = ("mkdir", "open", "write", "fsync", "replace", "unlink")


class Killed(BaseException):
    """The process has ended, or the power: nothing more is written."""


class Watched:
    """Does what it is asked, and calls `before` ahead of each point: with the call's name, the file's path,
    and the arguments.

    What `before` returns, where that is something, is done instead.
    """

    def __init__(self, before: Callable[[str, Path, tuple[Any, ...]], Any]) -> None:
        self._before = before
        self._paths: dict[int, Path] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in POINTS:
            return real

        def call(first: Any, *more: Any) -> Any:
            path = self._paths[first] if isinstance(first, int) else Path(first)
            instead = self._before(name, path, (first, *more))
            result = real(first, *more) if instead is None else instead()
            if name == "open":
                self._paths[result] = path
            return result

        return call


def site(name: str, path: Path) -> tuple[str, str]:
    """The kind of a point: the call, and the file without whose it is, its version, and what makes it a
    temporary one.
    """
    stem = path.name.removeprefix(".").split(".")[0].rstrip("0123456789-")
    return name, f"{path.parent.name.rstrip('0123456789-')}/{stem}"
