"""The house: rooms on floors, arrows only down, and the walls that docs/architecture.md names.

Read from the imports.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fedms"
FLOORS = (
    {"core"},
    {"config"},
    {"data", "model"},
    {"training"},
    {"federation"},
    {"engines", "runs"},
    {"experiments"},
    {"cli", ""},
)
"""The rooms of each floor, from the ground up; "" is the package's own `__init__`."""


def module_name(path: Path) -> str:
    """`fedms.core.files` for src/fedms/core/files.py."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, list[tuple[str, str]]]:
    """By module, what it imports from fedms, also inside functions: a module and the name taken from it."""
    paths = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
    found: dict[str, list[tuple[str, str]]] = {}
    for name, path in paths.items():
        found[name] = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] += [(each.name, "") for each in node.names if each.name.split(".")[0] == "fedms"]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                if (node.module or "").split(".")[0] == "fedms":
                    for each in node.names:
                        whole = f"{node.module}.{each.name}"
                        found[name].append((whole, "") if whole in paths else (str(node.module), each.name))
    return found


def room(module: str) -> str:
    """`core` for `fedms.core.files`; "" for the package itself."""
    return [*module.split("."), ""][1]


def rooms() -> dict[str, set[str]]:
    """By room, the other rooms that it imports from."""
    found = defaultdict[str, set[str]](set)
    for name, used in imports().items():
        found[room(name)] |= {room(module) for module, _ in used} - {room(name)}
    return dict(found)


def reached(start: str) -> set[str]:
    """All modules that a module imports, directly or by way of others."""
    waiting, seen = [start], set[str]()
    while waiting:
        for module, _ in imports().get(waiting.pop(), ()):
            if module not in seen:
                seen.add(module)
                waiting.append(module)
    return seen


def test_every_room_has_a_floor_and_every_arrow_points_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert rooms().keys() == floor.keys()
    up = [(name, used) for name, below in rooms().items() for used in below if floor[used] >= floor[name]]
    assert not up
    assert len(floor) <= 12 and len(FLOORS) <= 8


def test_no_module_imports_in_a_circle():
    assert not [name for name in imports() if name in reached(name)]


def test_no_private_name_crosses_a_module():
    crossing = [
        (name, module, taken)
        for name, used in imports().items()
        for module, taken in used
        if taken.startswith("_")
        or any(part.startswith("_") and part != "__main__" for part in module.split("."))
    ]
    assert not crossing


WALLS = {
    "fedms.federation.secure": ("fedms.core", "fedms.federation.secure"),
    "fedms.federation.private": (
        "fedms.core",
        "fedms.config",
        "fedms.federation.private",
        "fedms.federation.recipe",
        "fedms.federation.secure",
    ),
    "fedms.runs.report": ("fedms.core", "fedms.runs.intervals", "fedms.runs.reading", "fedms.runs.report"),
    "fedms.federation.exchanges": (
        "fedms.core",
        "fedms.config",
        "fedms.data",
        "fedms.model",
        "fedms.training",
        "fedms.federation.exchanges",
        "fedms.federation.assembly",
        "fedms.federation.client_view",
        "fedms.federation.evaluation",
        "fedms.federation.initialization",
        "fedms.federation.messages",
        "fedms.federation.method",
        "fedms.federation.personal_model",
        "fedms.federation.prediction",
        "fedms.federation.private",
        "fedms.federation.recipe",
        "fedms.federation.secure",
        "fedms.federation.tiers",
        "fedms.federation.token_prediction",
    ),
    "fedms.federation.aggregation": (
        "fedms.core",
        "fedms.config",
        "fedms.model",
        "fedms.federation.aggregation",
        "fedms.federation.messages",
    ),
}
"""What the modules of some folders may import, and nothing else."""


@pytest.mark.parametrize("folder", WALLS)
def test_a_wall_holds(folder):
    over = [
        (name, module)
        for name, used in imports().items()
        if name == folder or name.startswith(f"{folder}.")
        for module, _ in used
        if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in WALLS[folder])
    ]
    assert not over


@pytest.mark.parametrize("side", ["fedms.federation.server", "fedms.federation.client"])
def test_exchanges_know_neither_server_nor_client(side):
    exchanges = [name for name in imports() if name.startswith("fedms.federation.exchanges")]
    assert len(exchanges) > 7 and not [name for name in exchanges if side in reached(name)]


def test_modules_and_functions_stay_short():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 420, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 75, (path, node.name)
