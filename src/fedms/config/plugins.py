"""Plug-ins: the user's modules that a config names. Their import registers parts (`fedms.register`)."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from fedms.core.errors import ConfigError, FedmsError


def import_plugins(names: Iterable[str], folder: Path | None = None) -> None:
    """Import these modules, each once in a process.

    Args:
        names: modules on the import path, such as `my_module` or `my_package.rules`.
        folder: also look here. The folder becomes the last one of the import path if it holds a named module.

    Raises:
        ConfigError: a name is not that of a module, or the module cannot be imported.
    """
    for name in names:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"plugins: {name!r:.80} must be the name of a module, such as my_module")
        if folder is not None:
            _make_importable(name, folder.resolve())
        _import(name)


def _make_importable(name: str, folder: Path) -> None:
    """Put the folder on the import path if it holds the module."""
    top = name.partition(".")[0]
    beside = [path for path in (folder / f"{top}.py", folder / top / "__init__.py") if path.is_file()]
    if not beside:
        return
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # at the end, so that no other file in it hides an installed module
        importlib.invalidate_caches()
    loaded = sys.modules.get(top)
    found = getattr(loaded, "__file__", None) if loaded else getattr(find_spec(top), "origin", None)
    if found is None or Path(found).resolve() not in [path.resolve() for path in beside]:
        raise ConfigError(f"plugins: {beside[0]} has the name of another module; rename it")


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"plugins: no module {name}; it must lie beside the config file or on PYTHONPATH"
            ) from None
        raise ConfigError(f"plugins: {name} cannot be imported: {_told(error)}") from error
    except FedmsError as error:
        raise ConfigError(f"plugins: {name}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise ConfigError(f"plugins: {name} cannot be imported: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """The kind of error, its first line, and where it was raised."""
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, SyntaxError):  # says itself where
        return f"{type(error).__name__}: {first}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first} ({Path(last.filename).name}, line {last.lineno})"
