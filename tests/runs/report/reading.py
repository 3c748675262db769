"""How tests read what a report wrote."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from PIL import Image

VOID = {"meta", "link", "img", "br", "hr", "input", "area", "base", "col", "embed", "source", "track", "wbr"}


class Page(HTMLParser):
    """Checks that tags balance, and keeps tags, attributes, identifiers and table cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def stands_alone(html: str, folder: Path) -> None:
    """The page loads nothing and runs nothing, and leads only to files beside it that are there."""
    page = Page(html)
    assert "http://" not in html and "https://" not in html
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "foreignobject"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if tag == "a" and name == "href":
            assert (folder / unquote(value)).is_file() and ".." not in value
        elif name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"@import|url\((?!#)", html)


def identifiers_resolve(html: str) -> None:
    """Identifiers are unique, and every reference has its target."""
    page = Page(html)
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    references = {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")}
    references |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert references and references <= set(identifiers)


def follows_the_theme(html: str, pictures: int) -> None:
    """The page has this number of pictures, and none has a colour outside the themes."""
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    drawn = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawn) == pictures
    for svg in drawn:
        assert "var(--ink)" in svg
        assert not re.search(r'(fill|stroke)="', svg)  # CSS variables work in styles, not in attributes
        assert not re.search(r"(fill|stroke): #", svg)


def looks_drawn(stem: Path) -> None:
    """The PNG is not blank, and the SVG file is SVG."""
    with Image.open(stem.with_suffix(".png")) as image:
        assert min(image.size) > 300
        assert len(image.convert("L").getcolors() or range(256)) > 20
    assert ElementTree.parse(stem.with_suffix(".svg")).getroot().tag.endswith("svg")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The numbers of a picture."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
