"""The style of pictures, and their files: PNG, SVG, and the numbers as CSV.

The colours below are the light theme. In a page's SVG each of them becomes a CSS variable, so that the page
selects the theme. Series colours are from the set of Okabe and Ito, two of them darker for contrast on white.
Readers with any colour vision can distinguish them, and series also differ in shape.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from fedms.core.formatting import clip, printable

INK, MUTED, GRID, SURFACE = "#1b1f24", "#5b6470", "#dfe3e8", "#fefefe"
LOCAL, GLOBAL, THIRD, FOURTH, FIFTH = "#0072b2", "#d55e00", "#009e73", "#b0568a", "#8a6d00"
THEME = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    SURFACE: "surface",
    LOCAL: "local",
    GLOBAL: "global",
    THIRD: "third",
    FOURTH: "fourth",
    FIFTH: "fifth",
}
HEAT = "#0a84c6"
"""Colour of heat maps. They are pixels, which CSS cannot recolour, so this blue is visible on white and on
black."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "figure.facecolor": SURFACE,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
SUFFIXES = (".png", ".svg", ".csv")
"""Files of a picture."""
MOST_HOVERS = 800
FEWEST_ROUNDS = 5
WIDTH = 5.2
"""Width of a picture in inches. It is narrow, so that text stays readable on a phone."""


@dataclass(frozen=True)
class Numbers:
    """The numbers of a picture as a table: named columns, one row per mark."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Hover:
    """A text that appears where a reader points: on a mark at (x, y), or on a box from there with a width."""

    axes: Axes
    x: float
    y: float
    text: str
    width: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class Picture:
    """A drawn figure with its file name (no suffix), title, caption and numbers."""

    name: str
    title: str
    caption: str
    figure: Figure
    numbers: Numbers
    wide: bool = False
    spoken: str = ""
    """Description for screen readers, if the caption is not enough."""
    hovers: Sequence[Hover] = ()
    """Left out if there are more than MOST_HOVERS: marks are too small to point at then."""

    @cached_property
    def laid_out(self) -> Figure:
        """The figure with a fixed layout. Finding the layout is the slow part of drawing."""
        with style(self.name):
            self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        return self.figure

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG file in the light theme."""
        buffer = io.StringIO()
        with style(self.name):
            self.laid_out.savefig(buffer, format="svg", metadata={"Date": None})
        drawing, end, rest = buffer.getvalue().rpartition("</svg>")
        return drawing + self._titles() + end + rest

    def _titles(self) -> str:
        """The hovers as transparent shapes with titles, on top of the drawing. Its unit is a point."""
        if len(self.hovers) > MOST_HOVERS:
            return ""
        unit, top = self.figure.dpi / 72, self.figure.bbox.height
        shapes = []
        for each in self.hovers:
            corners = [(each.x, each.y), (each.x + each.width, each.y + each.height)]
            (left, low), (right, high) = each.axes.transData.transform(corners)
            x, y = left / unit, (top - max(low, high)) / unit
            width, height = (right - left) / unit, abs(high - low) / unit
            shape = (
                f'rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
                if each.width
                else f'circle cx="{x:.1f}" cy="{y:.1f}" r="5"'
            )
            title = f"<title>{escape(printable(each.text))}</title>"
            shapes.append(f'<{shape} style="fill: transparent">{title}</{shape.split()[0]}>')
        return "\n".join(shapes)


def save_pictures(
    pictures: Sequence[Picture], folder: Path, suffixes: Sequence[str] = SUFFIXES
) -> list[Path]:
    """Write each picture as NAME.png and NAME.svg, and its numbers as NAME.csv; return what was written."""
    folder.mkdir(exist_ok=True)
    written = []
    for picture in pictures:
        for suffix in suffixes:
            written.append(folder / f"{picture.name}{suffix}")
            save_picture(picture, written[-1])
    return written


def save_picture(picture: Picture, path: Path) -> None:
    """Write the picture in the light theme, or its numbers, by the path's suffix (`.pdf` or one of
    `SUFFIXES`).
    """
    if path.suffix in (".png", ".pdf"):
        undated = {"CreationDate": None} if path.suffix == ".pdf" else None  # the same picture, the same file
        with style(picture.name):
            picture.laid_out.savefig(path, dpi=200, metadata=undated)
    elif path.suffix == ".svg":
        path.write_text(picture.svg, encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([picture.numbers.columns, *picture.numbers.rows])


def to_svg(picture: Picture) -> str:
    """The figure as an SVG element for an HTML page, with CSS variables as colours."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)  # an HTML parser knows the namespaces
    # several pictures share one page: make their identifiers differ
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("xlink:href", "href")


@contextmanager
def style(salt: str) -> Iterator[None]:
    """The style of every picture. `salt`, its name, makes the identifiers in its SVG reproducible."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # a name in a script that the font lacks; the SVG shows it nevertheless
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def picture_text(name: Any, length: int = 28) -> str:
    """A name in a picture: clipped, and with dollar signs that do not start mathematics."""
    return clip(str(name), length).replace("$", r"\$")


def label(axes: Axes, x: float, y: float, text: str, right: float, up: float, **font: Any) -> None:
    """Write a text at an offset in points from a mark; a negative `right` puts it to the left."""
    side, height = "right" if right < 0 else "left", "bottom" if up else "center"
    axes.annotate(
        text, (x, y), (right, up), textcoords="offset points", ha=side, va=height, fontsize=8, **font
    )


def heat_map(axes: Axes, values: Any, fullest: float = 1.0, **options: Any) -> Any:
    """Values as opacity of one colour, from 0; `fullest` is the opacity of the highest value."""
    shades = LinearSegmentedColormap.from_list("heat", [(*_rgb(HEAT), 0.0), (*_rgb(HEAT), fullest)])
    image = axes.imshow(values, aspect="auto", cmap=shades, **options)
    axes.grid(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    return image


def cell(axes: Axes, column: int, line: int, text: str) -> Hover:
    """What a cell of a heat map says."""
    return Hover(axes, column - 0.5, line - 0.5, text, 1, 1)


def name_ticks(set_ticks: Callable[..., Any], given: Sequence[Any], most: int, **text: Any) -> None:
    """Name every tick, or every n-th tick if there are more than `most`."""
    step = -(-len(given) // most)
    places = range(0, len(given), max(1, step))
    set_ticks(places, [picture_text(given[place], 22) for place in places], fontsize=7, **text)


def long_enough(stages: Sequence[int]) -> bool:
    """Whether stages have rounds enough, all of them, for a picture over what they cost to be read."""
    return min(stages, default=0) >= FEWEST_ROUNDS


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def cumulative(values: Sequence[float]) -> list[float]:
    """Running sums."""
    out: list[float] = []
    for value in values:
        out.append((out[-1] if out else 0.0) + value)
    return out
