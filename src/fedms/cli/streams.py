"""The standard streams of a command: one that is closed, or that nobody reads any more, ends no command."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class _Output(io.FileIO):
    """An output that is thrown away once its reader has gone, as after `fedms predict ... | head -1`."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            _null(self.fileno())
            return len(memoryview(data).cast("B"))


def prepare_streams() -> None:
    """Open closed streams on the null device, and have both outputs survive their readers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _null(number)
            mode = "w" if number else "r"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open
            setattr(sys, name, stream)
    sys.stdout, sys.stderr = _surviving(sys.stdout), _surviving(sys.stderr)


def _surviving(stream: TextIO) -> TextIO:
    """The stream on the same file, with its encoding and its buffering."""
    raw = _Output(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=bool(stream.line_buffering)
    )


def _null(number: int) -> None:
    """Point this file descriptor to the null device. An open one would otherwise be the next file's."""
    handle = os.open(os.devnull, os.O_RDWR)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)


def line_width() -> int:
    """Characters per line: the width of the terminal, or 120 for a file or pipe."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 120


def print_table(table: Any) -> None:
    """Print a table of rich."""
    from rich.console import Console

    Console(width=line_width(), highlight=False).print(table)
