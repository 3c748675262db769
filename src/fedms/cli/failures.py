"""How a command fails: in one line, with an exit code."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

INTERRUPTED = 130
MISUSED = 2
HINT = "; run again with --debug for the traceback"
_UsageError: Any = typer.BadParameter.__base__
"""What a command line is refused with; where it is found depends on typer's version."""


class Commands(TyperGroup):
    """The commands; one that is used wrongly is told in a line, too."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **named: Any) -> Any:
        """Read the options that come before the command; without any words, the help is the answer."""
        if not args:
            return super().make_context(info_name, args, *more, **named)
        with _used():
            return super().make_context(info_name, args, *more, **named)

    def invoke(self, ctx: Any) -> Any:
        """Find the command, read its options, run it."""
        with _used():
            return super().invoke(ctx)


@contextlib.contextmanager
def _used() -> Iterator[None]:
    """A wrong command line as one line."""
    try:
        yield
    except _UsageError as error:
        path = error.ctx.command_path if error.ctx else "fedms"
        what = one_line(error.format_message()).rstrip(".")
        typer.echo(f"error: {what[:1].lower()}{what[1:]}; see {path} --help", err=True)
        raise typer.Exit(MISUSED) from None


class Command(TyperCommand):
    """A command whose failures are one line on stderr, and a traceback only where `--debug` asks for it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn what it raises into a line and an exit code."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as stop:
            typer.echo("; ".join(["interrupted", *stop.args]), err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader went away, as in `fedms methods | head`: typer ends silently
            line, code = describe(error)
            if ctx.find_root().params.get("debug"):
                import traceback

                traceback.print_exc()
                line = line.removesuffix(HINT)
            typer.echo(f"error: {line}", err=True)
            raise typer.Exit(code) from None


def describe(error: Exception) -> tuple[str, int]:
    """An error as one line, and the exit code."""
    from fedms.core.errors import FedmsError

    if isinstance(error, FedmsError):
        return one_line(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror[0].lower() + error.strerror[1:]
        return (f"{error.filename}: {what}" if error.filename else what), 1
    if "No space left on device" in str(error):  # as libraries say it that are not written in Python
        return "no space left on device", 1
    if isinstance(error, MemoryError):
        return "out of memory", 1
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name = type(error).__name__
    return f"unexpected {name}{': ' if first else ''}{first}{HINT}", 1


def one_line(text: object) -> str:
    """On one line, and without what a terminal would obey."""
    line = " ".join(str(text).split())
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line
    )
