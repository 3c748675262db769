"""The inputs of `fedms predict`: arguments, the lines of files, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from fedms.core.errors import FedmsError


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
