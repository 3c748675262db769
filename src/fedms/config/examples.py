"""The examples that travel in the package: configs that a command can name."""

from __future__ import annotations

from pathlib import Path

from fedms.core.errors import FedmsError
from fedms.core.formatting import did_you_mean

EXAMPLES = Path(__file__).parents[1] / "examples"
"""In a clone this is a link to the folder `examples` beside `src`."""


def example_names() -> list[str]:
    """The names of all examples, such as `assistant` and `ablations/rank`."""
    return sorted(path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.yaml"))


def config_file(given: Path) -> Path:
    """The file itself, or the example of this name where there is no such file.

    Raises:
        FedmsError: neither is there.
    """
    name = given.as_posix()
    if given.exists() or given.suffix in (".yaml", ".yml"):
        return given
    names = example_names()
    if name not in names:
        raise FedmsError(f"{given}: no such file, and no example of that name{did_you_mean(name, names)}")
    return EXAMPLES / f"{name}.yaml"
