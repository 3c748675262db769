"""Errors of a command: one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fedms.core.errors import FedmsError
from fedms.core.formatting import one_line

INTERRUPTED = 130
MISUSED = 2
HINT = "; run again with --debug for the traceback"
_UsageError: Any = typer.BadParameter.__base__
"""The exception of a wrong command line, found by inheritance: its module depends on typer's version."""


class Commands(TyperGroup):
    """The group of commands. A wrong command line is also reported in one line."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **named: Any) -> Any:
        """Read the options before the command's name. Without arguments, typer shows the help."""
        if not args:
            return super().make_context(info_name, args, *more, **named)
        with _usage_on_one_line():
            return super().make_context(info_name, args, *more, **named)

    def invoke(self, ctx: Any) -> Any:
        """Find the command, read its options and run it."""
        with _usage_on_one_line():
            return super().invoke(ctx)


@contextlib.contextmanager
def _usage_on_one_line() -> Iterator[None]:
    """Report a wrong command line in one line, with exit code MISUSED."""
    try:
        yield
    except _UsageError as error:
        path = error.ctx.command_path if error.ctx else "fedms"
        what = one_line(error.format_message()).rstrip(".")
        typer.echo(f"error: {what[:1].lower()}{what[1:]}; see {path} --help", err=True)
        raise typer.Exit(MISUSED) from None


class Command(TyperCommand):
    """A command. It reports an error in one line on stderr, with a traceback only under `--debug`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; report an exception as one line and an exit code."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as stop:
            typer.echo("; ".join(["interrupted", *stop.args]), err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader closed the pipe, as in `fedms methods | head`; typer then ends silently
            line, code = describe(error)
            if ctx.find_root().params.get("debug"):
                import traceback

                traceback.print_exc()
                line = line.removesuffix(HINT)
            typer.echo(f"error: {line}", err=True)
            raise typer.Exit(code) from None


@contextlib.contextmanager
def resumable(command: str, what: Path, overrides: Sequence[str], *options: str) -> Iterator[None]:
    """Add the command that resumes to the message of an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        sets = [part for override in overrides for part in ("--set", override)]
        again = shlex.join(("fedms", command, str(what), *sets, *options))
        raise KeyboardInterrupt(f"go on with: {again}") from None


def describe(error: Exception) -> tuple[str, int]:
    """An error as one line, and its exit code."""
    if isinstance(error, FedmsError):
        return one_line(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror[0].lower() + error.strerror[1:]
        return (f"{error.filename}: {what}" if error.filename else what), 1
    if "No space left on device" in str(error):  # libraries in other languages report a full disk so
        return "no space left on device", 1
    if isinstance(error, MemoryError):
        return "out of memory", 1
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name = type(error).__name__
    return f"unexpected {name}{': ' if first else ''}{first}{HINT}", 1
