"""What commands read: inputs of `fedms predict` (arguments, lines of files, standard input), and seeds."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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


AT_ONCE = 8192
"""Bytes of standard input that are read at a time, a few hundred short lines."""


def input_batches(arguments: list[str] | None, kind: str) -> Iterator[list[str | Path]]:
    """The inputs of a prediction: the arguments at once, or the lines of standard input as they come."""
    if not arguments:
        for lines in _arriving(sys.stdin.buffer):
            yield [Path(line) for line in lines] if kind == "image" else [*lines]
    elif kind == "image":
        yield [Path(each) for each in arguments]
    elif texts := [text for each in arguments for text in _texts(each)]:
        yield [*texts]


def _arriving(stream: BinaryIO) -> Iterator[list[str]]:
    """The whole lines that have come, without waiting for more of them than one."""
    waiting, before = b"", 0
    while part := stream.read1(AT_ONCE):  # type: ignore[attr-defined]
        whole, ended, rest = (waiting + part).rpartition(b"\n")
        waiting = rest
        if lines := _lines(whole, "standard input", before):
            yield lines
        before += len(whole + ended)
    if lines := _lines(waiting, "standard input", before):
        yield lines


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


def _lines(data: bytes, where: str, before: int = 0) -> list[str]:
    """All lines that are not blank. Raises FedmsError if the data is not UTF-8.

    `before` counts the bytes that came before these.
    """
    try:
        text = data.decode("utf-8" if before else "utf-8-sig")
        return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise FedmsError(f"{where}: not a text in UTF-8 (byte {before + error.start})") from None
