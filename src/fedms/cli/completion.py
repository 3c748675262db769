"""What the shell proposes after Tab: methods, examples, keys, and a run's clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def complete_method(incomplete: str) -> list[tuple[str, str]]:
    """Methods that begin so, with their summaries."""
    from fedms.federation.methods import METHODS

    return [(name, method.summary) for name, method in METHODS.items() if name.startswith(incomplete)]


def complete_config(incomplete: str) -> list[str]:
    """Examples and YAML files that begin so."""
    from fedms.config.examples import example_names

    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete or "x").parent
    files = [str(path) for path in folder.glob("*.yaml")] if folder.is_dir() else []
    return [name for name in [*example_names(), *files] if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[tuple[str, str]]:
    """Keys that begin so, with their meanings."""
    from fedms.config.reference import all_keys

    return [(key.name, key.meaning) for key in all_keys() if key.name.startswith(incomplete)]


def complete_override(incomplete: str) -> list[str]:
    """`KEY=` for keys that begin so."""
    return [f"{name}=" for name, _ in complete_key(incomplete)]


def complete_client(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Clients of the run that the command line names."""
    words = [*ctx.params.values(), *ctx.args, *args]
    folders = [Path(word, "clients") for word in words if isinstance(word, str | Path)]
    names = sorted(path.name for folder in folders if folder.is_dir() for path in folder.iterdir())
    return list(dict.fromkeys(name for name in names if name.startswith(incomplete)))
