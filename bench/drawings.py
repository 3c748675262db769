"""Write docs/pictures/method.svg and docs/pictures/house.svg.

    python bench/drawings.py                     # both pictures
    python bench/drawings.py --dark FOLDER       # both in dark colours, into FOLDER

The picture of the method shows the two stages, what travels between server and clients, and what stays. The
picture of the house shows the packages of src/fedms and their imports, read from the source: a package
stands one floor above the highest package that it imports.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from common.pages import ROOT
from common.svg import Drawing

PICTURES = ROOT / "docs" / "pictures"
SOURCE = ROOT / "src" / "fedms"
FACE = "import fedms"
"""The room of src/fedms/__init__.py, the Python interface."""
PURPOSES = {
    FACE: "the Python interface, lazy",
    "cli": "the commands",
    "experiments": "run and compare: rounds, stages, progress",
    "engines": "carry tasks to clients and updates back",
    "runs": "run folders: read, predict, export, report",
    "federation": "server, clients, methods, messages, aggregation",
    "training": "one device: prefix cache, training steps",
    "data": "sources, images, partition, samples",
    "model": "backbone, LoRA, heads, statistics, gate",
    "config": "every key, typed and checked",
    "core": "errors, seeds, files, text",
}


def room_of(name: str) -> str | None:
    """The room of a dotted module name; None outside fedms."""
    first, *rest = name.split(".")
    if first != "fedms":
        return None
    return rest[0] if rest and (SOURCE / rest[0]).is_dir() else FACE


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def read_rooms() -> dict[str, set[str]]:
    """Room -> rooms that it imports, from the source."""
    rooms: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).parts
        room = parts[0] if len(parts) > 1 else FACE
        used = {room_of(name) for name in imported(path)}
        rooms.setdefault(room, set()).update(each for each in used if each and each != room)
    return rooms


def floors_of(rooms: dict[str, set[str]]) -> dict[str, int]:
    """Room -> floor, from 1; a room stands one floor above the highest room that it imports."""
    floors: dict[str, int] = {}
    while len(floors) < len(rooms):
        ready = [room for room, used in rooms.items() if room not in floors and used <= floors.keys()]
        if not ready:
            raise ValueError(f"a circle of imports among {sorted(rooms.keys() - floors.keys())}")
        floors |= {room: 1 + max((floors[each] for each in rooms[room]), default=0) for room in ready}
    return floors


def direct(rooms: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that no chain of other imports already implies."""

    def below(room: str) -> set[str]:
        return rooms[room].union(*(below(each) for each in rooms[room]))

    return {
        room: {each for each in used if not any(each in below(other) for other in used - {each})}
        for room, used in rooms.items()
    }


def house() -> Drawing:
    """The rooms by floor. Arrows show direct imports; each room lists its other imports."""
    rooms = read_rooms()
    floors, arrows = floors_of(rooms), direct(rooms)
    top, width, height, step = max(floors.values()), 380, 66, 104
    drawing = Drawing(900, 64 + step * top, "The rooms of src/fedms and their imports")
    drawing.text(450, 30, "src/fedms: each room imports only rooms below it", "title", "middle")
    places: dict[str, tuple[float, float]] = {}
    for floor in range(1, top + 1):
        here = sorted(room for room in rooms if floors[room] == floor)
        for number, room in enumerate(here):
            middle = 490 + (number - (len(here) - 1) / 2) * (width + 20)
            places[room] = (middle, 58 + step * (top - floor))
    for room, used in arrows.items():
        x, y = places[room]
        for each in sorted(used):
            x1, y1 = places[each]
            lean = max(-60.0, min(60.0, (x1 - x) / 4))
            drawing.arrow((x + lean, y + height), (x1 - lean, y1))
    for room, (x, y) in places.items():
        drawing.box(x - width / 2, y, width, height, "room")
        drawing.text(x, y + 20, room, "name", "middle")
        drawing.text(x, y + 38, PURPOSES.get(room, ""), "small", "middle")
        if others := sorted(rooms[room] - arrows[room]):
            drawing.text(x, y + 56, "also imports " + ", ".join(others), "faint", "middle")
    for floor in range(1, top + 1):
        drawing.text(20, 58 + step * (top - floor) + 38, f"floor {floor}", "faint")
    return drawing


def panel(drawing: Drawing, x: float, title: str, server: list[str], down: list[str], up: list[str]) -> None:
    """One stage: its title, the server, and the two arrows with what travels."""
    drawing.box(x, 16, 452, 690, "panel")
    drawing.text(x + 18, 44, title, "title")
    drawing.box(x + 18, 60, 416, 24 + 18 * len(server), "room")
    drawing.text(x + 32, 82, "Server", "name")
    drawing.text(x + 104, 82, server)
    bottom = 84 + 18 * len(server)
    drawing.arrow((x + 36, bottom), (x + 36, 262))
    drawing.text(x + 48, 172, "down", "name")
    drawing.text(x + 48, 192, down, "small")
    drawing.arrow((x + 232, 262), (x + 232, bottom))
    drawing.text(x + 244, 172, "up", "name")
    drawing.text(x + 244, 192, up, "small")


def clients(drawing: Drawing, x: float) -> None:
    """The outline of one client in front of others."""
    for shift in (12, 6, 0):
        drawing.box(x + 18 + shift, 264 + shift, 404, 412, "room")
    drawing.text(x + 32, 288, "Client", "name")
    drawing.text(x + 92, 288, "one of N, with its own data", "small")


def first_stage(drawing: Drawing) -> None:
    """Stage 1: LoRA of the active blocks and the head travel."""
    x = 16
    panel(
        drawing,
        x,
        "Stage 1: the global expert",
        ["averages each array over its clients,", "activates more blocks when", "validation stands still"],
        ["LoRA of active blocks,", "head"],
        ["LoRA and head updates,", "loss, validation hits;", "once: feature statistics"],
    )
    clients(drawing, x)
    drawing.box(x + 36, 306, 196, 30, "shared")
    drawing.text(x + 134, 326, "head", anchor="middle")
    for number in range(6):
        y, active = 344 + 42 * number, number < 2
        drawing.box(x + 36, y, 132, 34, "frozen")
        drawing.text(x + 102, y + 22, f"block {6 - number}", anchor="middle")
        if active:
            drawing.box(x + 176, y, 56, 34, "shared")
            drawing.text(x + 204, y + 22, "LoRA", anchor="middle")
    drawing.text(x + 246, 326, "trained, travels")
    drawing.text(x + 246, 366, ["active blocks:", "LoRA trained, travels"])
    drawing.text(x + 190, 450, ["frozen prefix:", "computed once for each", "sample, kept at the client"])
    drawing.text(x + 36, 622, "Stays: samples, labels, frozen prefix.")
    drawing.text(x + 36, 644, "The backbone is frozen and the same everywhere.", "faint")


def second_stage(drawing: Drawing) -> None:
    """Stage 2: only the gate adapter travels in each round."""
    x = 484
    panel(
        drawing,
        x,
        "Stage 2: local expert and gate",
        ["averages the gate adapter;", "at the end chooses two numbers by", "sums of validation likelihoods"],
        ["gate adapter;", "once: global expert,", "class shares"],
        ["gate adapter;", "once: feature statistics;", "at the end: likelihoods"],
    )
    clients(drawing, x)
    for left, top, style, name, state in (
        (36, 306, "frozen", "global expert", "frozen now"),
        (238, 306, "private", "local expert", "trained, private"),
        (36, 526, "shared", "gate adapter", "trained, travels"),
        (238, 526, "private", "gate network", "trained, private"),
    ):
        drawing.box(x + left, top, 166, 62, style)
        drawing.text(x + left + 83, top + 26, name, anchor="middle")
        drawing.text(x + left + 83, top + 46, state, "small", "middle")
    drawing.box(x + 36, 416, 368, 62, "room")
    drawing.text(x + 220, 442, "p(y|x) = g_G · global(x) + g_L · local(x)", anchor="middle")
    drawing.text(x + 220, 462, "g_G + g_L = 1, chosen by the gate for each x", "small", "middle")
    drawing.arrow((x + 119, 368), (x + 119, 416))
    drawing.arrow((x + 321, 368), (x + 321, 416))
    drawing.arrow((x + 202, 557), (x + 238, 557))
    drawing.arrow((x + 321, 526), (x + 321, 478))
    drawing.text(x + 36, 622, "Stays: samples, local expert, gate network.")
    drawing.text(x + 36, 644, "Each client predicts with its own mixture.", "faint")


def method() -> Drawing:
    """The two stages side by side, and a legend."""
    drawing = Drawing(952, 752, "FedMS in two stages: what travels and what stays")
    first_stage(drawing)
    second_stage(drawing)
    for x, style, meaning in (
        (40, "frozen", "frozen"),
        (170, "shared", "trained, shared with the server"),
        (460, "private", "trained, never leaves the client"),
    ):
        drawing.box(x, 718, 22, 18, style, radius=3)
        drawing.text(x + 30, 732, meaning)
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dark", type=Path, metavar="FOLDER", help="write dark pictures into this folder")
    given = parser.parse_args()
    folder: Path = given.dark or PICTURES
    for name, drawing in (("method", method()), ("house", house())):
        (folder / f"{name}.svg").write_text(drawing.render(dark=given.dark is not None), encoding="utf-8")


if __name__ == "__main__":
    main()
