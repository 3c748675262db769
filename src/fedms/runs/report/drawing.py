"""How pictures are drawn and saved: a PNG and an SVG on white, an SVG whose colours follow the page's theme, and the numbers as CSV.

The colours below are the light theme. In the page's SVG each of them becomes a CSS variable, so the page decides. Series colours are
of Okabe and Ito's set (two of them darker, to be read on white), which people with any colour vision can tell apart, and series
differ in shape as well.
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
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from fedms.core.formatting import clip

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
"""The heat map is pixels, which CSS cannot recolour: one blue that reads on white and on black, more or less transparent."""

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
}
SUFFIXES = (".png", ".svg", ".csv")
"""As what a picture can be saved."""
WIDTH = 5.2
"""Inches. Narrow, so that the text stays readable when a phone shrinks the picture."""


@dataclass(frozen=True)
class Numbers:
    """What a picture shows, as a table: named columns, a row a mark."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


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
    """What the picture shows, for those who cannot see it; the caption where there is no more to say."""

    @cached_property
    def laid_out(self) -> Figure:
        """The figure with its layout found, which is the slow part of drawing, and fixed: it is the same in every file."""
        with style(self.name):
            self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        return self.figure

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG file on a light ground."""
        buffer = io.StringIO()
        with style(self.name):
            self.laid_out.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()


def save_pictures(pictures: Sequence[Picture], folder: Path) -> None:
    """Write each picture as NAME.png, NAME.svg and, what it shows, NAME.csv."""
    folder.mkdir(exist_ok=True)
    for picture in pictures:
        for suffix in SUFFIXES:
            save_picture(picture, folder / f"{picture.name}{suffix}")


def save_picture(picture: Picture, path: Path) -> None:
    """Write the picture on a light ground, or the numbers that it shows, as the path's suffix says: one of `SUFFIXES`."""
    if path.suffix == ".png":
        with style(picture.name):
            picture.laid_out.savefig(path, format="png", dpi=200)
    elif path.suffix == ".svg":
        path.write_text(picture.svg, encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([picture.numbers.columns, *picture.numbers.rows])


def to_svg(picture: Picture) -> str:
    """The figure as an SVG element to stand inside an HTML page, its colours CSS variables."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)  # HTML's parser knows the namespaces
    # several pictures share one page: make their identifiers differ
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("xlink:href", "href")


@contextmanager
def style(salt: str) -> Iterator[None]:
    """The look of every picture; `salt`, its name, makes the identifiers in its SVG the same each time."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph"
        )  # a name in a script that the font lacks; the SVG shows it all the same
        yield


def picture_text(name: Any, length: int = 28) -> str:
    """A name for a picture: clipped, and a dollar sign is a dollar sign, not mathematics."""
    return clip(str(name), length).replace("$", r"\$")


def label(axes: Axes, x: float, y: float, text: str, right: float, up: float, **font: Any) -> None:
    """A text so many points to the right of (or, negative, to the left of) and above a point."""
    side, height = "right" if right < 0 else "left", "bottom" if up else "center"
    axes.annotate(
        text, (x, y), (right, up), textcoords="offset points", ha=side, va=height, fontsize=8, **font
    )


def heat_map(axes: Axes, values: Any, fullest: float = 1.0, **options: Any) -> Any:
    """Values as shades of one colour, from none at all; `fullest` is the opacity of the highest."""
    shades = LinearSegmentedColormap.from_list("heat", [(*_rgb(HEAT), 0.0), (*_rgb(HEAT), fullest)])
    image = axes.imshow(values, aspect="auto", cmap=shades, **options)
    axes.grid(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    return image


def name_ticks(set_ticks: Callable[..., Any], given: Sequence[Any], most: int, **text: Any) -> None:
    """Name every tick, or every n-th when they are too many."""
    step = -(-len(given) // most)
    places = range(0, len(given), max(1, step))
    set_ticks(places, [picture_text(given[place], 22) for place in places], fontsize=7, **text)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def cumulative(values: Sequence[float]) -> list[float]:
    """The sums so far."""
    out: list[float] = []
    for value in values:
        out.append((out[-1] if out else 0.0) + value)
    return out
