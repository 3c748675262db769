"""Engines by their names in the config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedms.engines.base import Engine
from fedms.engines.local import LocalEngine
from fedms.federation.world import World

ENGINES: dict[str, Callable[[World, Path, Path | None], Engine]] = {"local": LocalEngine}
"""By `engine.name`: from the world, the run folder and the folder of shared prefixes to an open engine."""


def open_engine(world: World, folder: Path, prefixes: Path | None = None) -> Engine:
    """The engine that the config names.

    Args:
        folder: the run folder.
        prefixes: a folder of frozen prefixes' outputs, which runs share.

    Raises:
        FedmsError: the engine cannot start.
    """
    return ENGINES[world.config.engine.name](world, folder, prefixes)
