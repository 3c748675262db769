"""Names and paths that come from outside: none leads out of the folder that it belongs to."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fedms.core.errors import FedmsError

LONGEST_NAME = 200
"""Bytes of a name at most, as a part of a folder's."""
RULE = "`/`, `\\`, `,`, `..`, leading dot or outer blanks, and nothing that does not print"
"""What a name must not hold."""

_NAME = re.compile(r"(?![.\s])(?!.*\.\.)[^/\\,]+(?<!\s)")


def is_name(name: object, longest: int = LONGEST_NAME) -> bool:
    """Whether this can be part of a folder's name, on any machine, and of a list with commas."""
    return (
        isinstance(name, str)
        and bool(_NAME.fullmatch(name))
        and name.isprintable()
        and len(name.encode()) <= longest
    )


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that some file systems hold for one: they differ in case or in how letters are put together alone."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(
            unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()), name
        )
        if other != name:
            return other, name
    return None


def check_no_escape(folder: Path) -> None:
    """Nothing, where all that is in the folder is its own.

    Raises:
        FedmsError: a link leads out of it, or something in it is neither file nor folder (who opens a pipe waits for ever).
    """
    root = os.path.realpath(folder)
    waiting = [str(folder)]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        if os.path.commonpath([root, os.path.realpath(entry.path)]) != root:
                            raise FedmsError(
                                f"{entry.path}: a link that leads out of {folder}; a run's files lie in its folder"
                            )
                    elif entry.is_dir():
                        waiting.append(entry.path)
                    elif not entry.is_file():
                        raise FedmsError(f"{entry.path}: neither a file nor a folder")
    except OSError as error:
        raise FedmsError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None
