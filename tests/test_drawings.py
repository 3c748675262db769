"""The drawings in docs/pictures are up to date and stay within their frames."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("drawings")


@pytest.mark.parametrize("name", ["method", "house"])
def test_the_picture_is_up_to_date(drawings: ModuleType, name: str) -> None:
    drawn = getattr(drawings, name)().render()
    stored = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn == stored, "run: python bench/drawings.py"


def test_every_room_has_a_purpose_and_imports_only_rooms_below_it(drawings: ModuleType) -> None:
    rooms = drawings.read_rooms()
    floors = drawings.floors_of(rooms)
    assert rooms.keys() == drawings.PURPOSES.keys()
    assert all(floors[used] < floors[room] for room, each in rooms.items() for used in each)


def test_a_circle_of_imports_is_an_error(drawings: ModuleType) -> None:
    with pytest.raises(ValueError, match="a circle of imports among \\['a', 'b'\\]"):
        drawings.floors_of({"a": {"b"}, "b": {"a"}, "c": set()})


def test_an_arrow_that_others_imply_is_not_drawn(drawings: ModuleType) -> None:
    assert drawings.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


@pytest.mark.parametrize("name", ["method", "house"])
def test_a_drawing_follows_the_colour_scheme_and_stays_within_its_frame(
    drawings: ModuleType, name: str
) -> None:
    drawing = getattr(drawings, name)()
    assert "prefers-color-scheme: dark" in drawing.render()
    assert "prefers-color-scheme" not in drawing.render(dark=True)
    root = ElementTree.fromstring(drawing.render())
    for box in root.iter(f"{SVG}rect"):
        right = float(box.attrib["x"]) + float(box.attrib["width"])
        bottom = float(box.attrib["y"]) + float(box.attrib["height"])
        assert right <= drawing.width and bottom <= drawing.height
    for text in root.iter(f"{SVG}text"):
        assert 0 < float(text.attrib["x"]) < drawing.width
        assert 0 < float(text.attrib["y"]) < drawing.height
