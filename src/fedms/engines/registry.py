"""Engines by their names in the config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedms.config import Config
from fedms.engines.base import Engine
from fedms.engines.flower.opening import find_sites, open_flower
from fedms.engines.local import LocalEngine
from fedms.federation.sites import ServerSide

ENGINES: dict[str, Callable[[Any, Path, Path | None], Engine]] = {"local": LocalEngine, "flower": open_flower}
"""By `engine.name`: from the server's side, the run folder and the folder of shared prefixes to an open
engine. The local engine takes a `World`."""

REMOTE: dict[str, Callable[[Config], ServerSide]] = {"flower": find_sites}
"""By `engine.name`: how the server's side of a federation is opened whose data are elsewhere."""


def open_engine(world: ServerSide, folder: Path, prefixes: Path | None = None) -> Engine:
    """The engine that the config names.

    Args:
        folder: the run folder.
        prefixes: a folder of frozen prefixes' outputs, which runs share.

    Raises:
        FedmsError: the engine cannot start.
    """
    return ENGINES[world.config.engine.name](world, folder, prefixes)
