"""Checks of names and paths from outside: none may lead out of its folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fedms.core.errors import FedmsError

LONGEST_NAME = 200
"""Upper bound on the bytes of a name, which becomes a part of a folder's name."""
NAME_RULE = "`/`, `\\`, `,`, `..`, leading dot or outer blanks, and nothing that does not print"
"""What a name must not contain, for messages after "no"."""

_NAME = re.compile(r"(?![.\s])(?!.*\.\.)[^/\\,]+(?<!\s)")


def is_name(name: object, longest: int = LONGEST_NAME) -> bool:
    """Whether this can be a part of a folder's name on any machine, and of a comma-separated list."""
    return (
        isinstance(name, str)
        and bool(_NAME.fullmatch(name))
        and name.isprintable()
        and len(name.encode()) <= longest
    )


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that some file systems do not tell apart; None if there are none.

    Such names differ only in case or in the Unicode normal form.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(
            unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()), name
        )
        if other != name:
            return other, name
    return None


def check_no_escape(folder: Path) -> None:
    """Raise unless everything in the folder lies in it.

    Raises:
        FedmsError: a link leads out of the folder, or an entry is neither a file nor a folder (opening a pipe
            could block for ever).
    """
    root = os.path.realpath(folder)
    waiting = [str(folder)]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        if os.path.commonpath([root, os.path.realpath(entry.path)]) != root:
                            what = f"a link that leads out of {folder}; a run's files lie in its folder"
                            raise FedmsError(f"{entry.path}: {what}")
                    elif entry.is_dir():
                        waiting.append(entry.path)
                    elif not entry.is_file():
                        raise FedmsError(f"{entry.path}: neither a file nor a folder")
    except OSError as error:
        raise FedmsError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None
