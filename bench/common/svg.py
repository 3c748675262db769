"""A small SVG writer: boxes, lines of text and arrows, in colours for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
text { font-family: 'DejaVu Sans', Verdana, Helvetica, sans-serif; font-size: 13px; fill: #1f2430; }
.page { fill: #ffffff; }
.panel { fill: #f5f6f8; stroke: #c9ced6; }
.room { fill: #ffffff; stroke: #7b8494; }
.frozen { fill: #e3e7ee; stroke: #7b8494; }
.shared { fill: #cfe3fb; stroke: #2866b1; }
.private { fill: #fbe3c4; stroke: #b36a12; }
.line { fill: none; stroke: #5a6474; stroke-width: 1.6; }
.head { fill: #5a6474; }
.title { font-size: 17px; font-weight: bold; }
.name { font-size: 14px; font-weight: bold; }
.small { font-size: 12px; }
.faint { font-size: 12px; fill: #5a6474; }
"""
DARK_STYLE = """
text { fill: #e6e9ef; }
.page { fill: #14171c; }
.panel { fill: #1d2229; stroke: #414a57; }
.room { fill: #14171c; stroke: #8b95a5; }
.frozen { fill: #333b47; stroke: #8b95a5; }
.shared { fill: #173a63; stroke: #6ba8ee; }
.private { fill: #55380f; stroke: #e5a655; }
.line { stroke: #a4adba; }
.head { fill: #a4adba; }
.faint { fill: #a4adba; }
"""
HEAD_LENGTH, HEAD_WIDTH = 9.0, 4.5
"""Length and half width of an arrow head, in pixels."""


class Drawing:
    """An SVG picture of `width` x `height` pixels."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []
        self.box(0, 0, width, height, "page", radius=0)

    def box(self, x: float, y: float, width: float, height: float, style: str, radius: float = 7) -> None:
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
        self.parts.append(f'<rect class="{style}" {place}/>')

    def text(
        self, x: float, y: float, lines: str | Sequence[str], style: str = "", anchor: str = "start"
    ) -> None:
        """Lines of text, 18 pixels apart; `y` is the baseline of the first line."""
        for number, line in enumerate([lines] if isinstance(lines, str) else lines):
            self.parts.append(
                f'<text class="{style}" x="{x:g}" y="{y + 18 * number:g}" text-anchor="{anchor}">'
                f"{escape(line)}</text>"
            )

    def arrow(self, *points: tuple[float, float]) -> None:
        """An arrow along the points, with its head at the last one."""
        (x0, y0), (x1, y1) = points[-2:]
        length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-9)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        base = (x1 - HEAD_LENGTH * dx, y1 - HEAD_LENGTH * dy)
        path = " ".join(f"{x:g},{y:g}" for x, y in [*points[:-1], base])
        corners = (
            (x1, y1),
            (base[0] - HEAD_WIDTH * dy, base[1] + HEAD_WIDTH * dx),
            (base[0] + HEAD_WIDTH * dy, base[1] - HEAD_WIDTH * dx),
        )
        head = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        self.parts.append(f'<polyline class="line" points="{path}"/><polygon class="head" points="{head}"/>')

    def render(self, dark: bool = False) -> str:
        """The SVG text. It follows the reader's colour scheme; with `dark` it is always dark."""
        style = STYLE + (DARK_STYLE if dark else f"@media (prefers-color-scheme: dark) {{{DARK_STYLE}}}\n")
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<style>{style}</style>",
                *self.parts,
                "</svg>\n",
            ]
        )
