"""What commands read: inputs of `fedms predict` (arguments, lines of files, standard input), and seeds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fedms.core.errors import ConfigError, FedmsError
from fedms.core.formatting import one_line

MOST_NUMBERS = 1000
"""Upper bound on the length of a range on the command line."""


def whole_numbers(text: str | None, option: str) -> list[int] | None:
    """`0,1,2` or `0-2` or `0-2,7` as numbers; None for None. Raises ConfigError for anything else."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(-?[0-9]{1,18})(?:-([0-9]{1,18}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST_NUMBERS:
            raise ConfigError(
                f"{option}: must be whole numbers between commas or a range, "
                f"as in 0,1,2 or 0-4, not {one_line(text)!r}"
            )
        found += range(first, last + 1)
    return found


def read_inputs(arguments: list[str] | None, kind: str) -> list[str | Path]:
    """The inputs of a prediction: the arguments, or the lines of standard input."""
    if not arguments:
        given = _lines(sys.stdin.buffer.read(), "standard input")
        return list(map(Path, given)) if kind == "image" else list(given)
    if kind == "image":
        return [Path(each) for each in arguments]
    return [text for each in arguments for text in _texts(each)]


def _texts(argument: str) -> list[str]:
    """The lines of a .txt file, or the argument as one text."""
    path = Path(argument)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a file's name, so it is a text
        is_file = False
    named = path.suffix.lower() == ".txt" and not argument.split()[1:]
    if is_file != named:
        raise FedmsError(
            f"{path}: is a file, but texts are read from .txt files alone"
            if is_file
            else f"{path}: no such file"
        )
    return _lines(path.read_bytes(), argument) if is_file else [argument]


def _lines(data: bytes, where: str) -> list[str]:
    """All lines that are not blank. Raises FedmsError if the data is not UTF-8."""
    try:
        return [line.removesuffix("\r") for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise FedmsError(f"{where}: not a text in UTF-8 (byte {error.start})") from None
