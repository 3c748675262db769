"""One table of a source, whatever its format: columns as text, pictures as what opens them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedms.core.errors import FedmsError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""What the file begins with that Git LFS leaves where the content was not fetched."""


@dataclass
class Table:
    """Columns of one file, as text; classes that a column declares; and what opens the picture of a row."""

    where: str
    rows: int
    scalars: dict[str, list[str | None]] = field(default_factory=dict)
    images: dict[str, Sequence[Callable[[], Any]]] = field(default_factory=dict)
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    nested: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Columns with several values in a row: the first such row, from 1, and what it holds (`a list`)"""
    mixed: set[str] = field(default_factory=set)
    """Those of them that hold plain values in other rows"""

    client: str = ""
    """The client that holds it, where each file is one client's"""

    @property
    def columns(self) -> dict[str, None]:
        """All columns, in their order, as keys."""
        return dict.fromkeys([*self.scalars, *self.images, *self.nested])

    @property
    def names(self) -> str:
        return ", ".join(self.columns) or "none"

    def set_column(self, name: str, values: Sequence[Any]) -> None:
        """Keep a column of plain values, or note that it holds lists or objects."""
        for row, value in enumerate(values, 1):
            if isinstance(value, list | dict):
                self.nested[name] = row, "a list" if isinstance(value, list) else "an object"
                if not all(each is None or isinstance(each, list | dict) for each in values):
                    self.mixed.add(name)
                return
        self.scalars[name] = [scalar(value) for value in values]


def scalar(value: Any) -> str | None:
    """The value as text; None where it is missing."""
    return None if value is None or value != value else str(value)  # NaN is the only value unequal to itself


def brief(error: object) -> str:
    """What an error says, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def check_no_pointer(path: Path) -> None:
    """Raise FedmsError where Git LFS left a pointer in place of the file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise FedmsError(
                f"{path}: a Git LFS pointer, not the file itself: run `git lfs pull` where it is"
            )
