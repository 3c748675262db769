"""The main picture of a comparison: accuracy on own data over accuracy on everyone's data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from fedms.core.formatting import clip, percent
from fedms.runs.reading.comparison import Comparison, RowResults
from fedms.runs.reading.run import number
from fedms.runs.report.drawing import (
    FIFTH,
    FOURTH,
    GLOBAL,
    INK,
    LOCAL,
    MUTED,
    SURFACE,
    THIRD,
    WIDTH,
    Hover,
    Numbers,
    Picture,
    picture_text,
    style,
)
from fedms.runs.report.run.figures import frontier_text

MOST_NAMED = 10
"""Up to this number of rows, labels are names. More rows get numbers, with a key below."""
MOST_CROWDED = 0.5
"""If the rows around the baseline fill a smaller part of the picture than this, they get a close-up."""
COLOURS = (GLOBAL, THIRD, FOURTH, FIFTH, INK)
MARKERS = ("o", "s", "^", "v", "P", "X", "h")
LINES: Sequence[Any] = ("--", "-.", ":", (0, (6, 2)))
LABEL_DISTANCES = (1, 4, 8, 12, 16, 23, 32, 42, 54, 68, 84)
"""Distances in points between a mark and its label, in the order in which they are tried."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Mark:
    """A row's point and its look. `curve` is its frontier, empty if another row has drawn the same one."""

    row: RowResults
    x: float
    y: float
    curve: list[tuple[float, float, float]]
    colour: str
    marker: str
    line: Any
    text: str
    key: str


def frontier(comparison: Comparison) -> Picture | None:
    """accuracy_local over accuracy_global for every row, and for every prior of a row with a frontier."""
    marks = _marks(comparison)
    if not marks:
        return None
    name = comparison.baseline.name
    curve = (
        f"The curve of {name} runs over the prior; the diamond is its default prior. "
        if comparison.baseline.frontier()
        else ""
    )
    figure = _drawn("frontier", comparison, marks, frame=_crowd(comparison, marks))
    return Picture(
        "frontier",
        "Frontier",
        "Up: higher accuracy on own data. To the right: higher accuracy on everyone's data. "
        f"{curve}Thin bars: one standard deviation over seeds.",
        figure,
        _numbers(comparison.rows),
        spoken=_spoken(marks),
        hovers=_hovers(figure.axes[0], marks),
    )


def close_up(comparison: Comparison) -> Picture | None:
    """The part of the frontier around the baseline, if a distant row makes this part small."""
    marks = _marks(comparison)
    frame = _crowd(comparison, marks)
    if frame is None:
        return None
    near = [mark for mark in marks if _inside(mark, frame)]
    outside = ", ".join(clip(mark.row.name) for mark in marks if mark not in near)
    figure = _drawn("frontier-near", comparison, near, limits=frame)
    return Picture(
        "frontier-near",
        "Frontier, close up",
        f"The area of the dashed frame, around the curve of {comparison.baseline.name}. Outside: {outside}.",
        figure,
        _numbers([mark.row for mark in near]),
        spoken=_spoken(near),
        hovers=_hovers(figure.axes[0], near),
    )


def _crowd(comparison: Comparison, marks: Sequence[Mark]) -> Box | None:
    """A frame around the baseline's curve, if it holds several rows in a small part of the picture."""
    points = [
        (x, y)
        for mark in marks
        if mark.row is comparison.baseline
        for _, x, y in [*mark.curve, (0.0, mark.x, mark.y)]
    ]
    if len(points) < 3:
        return None
    (left, right), (low, high) = (_wider(min(each), max(each)) for each in zip(*points, strict=True))
    frame = (left, low, right, high)
    across, up = (max(each) - min(each) for each in zip(*((mark.x, mark.y) for mark in marks), strict=True))
    part = min(1.0, (right - left) / across if across else 1.0) * min(1.0, (high - low) / up if up else 1.0)
    return frame if part < MOST_CROWDED and sum(_inside(mark, frame) for mark in marks) > 1 else None


def _wider(low: float, high: float) -> tuple[float, float]:
    more = max(0.005, 0.4 * (high - low))
    return low - more, high + more


def _inside(mark: Mark, frame: Box) -> bool:
    return frame[0] <= mark.x <= frame[2] and frame[1] <= mark.y <= frame[3]


def _drawn(
    name: str,
    comparison: Comparison,
    marks: Sequence[Mark],
    frame: Box | None = None,
    limits: Box | None = None,
) -> Figure:
    """The figure of these marks. Marks in `frame` are named in a key; the close-up labels them."""
    keyed = frame is not None or any(mark.key for mark in marks)
    below = 0.17 * math.ceil(len(marks) / 2) + 0.1 if keyed else 0.0
    labelled = [
        mark for mark in marks if frame is None or mark.row is comparison.baseline or not _inside(mark, frame)
    ]
    with style(name):
        figure = Figure(figsize=(WIDTH, 4.4 + below))
        axes = figure.subplots()
        for mark in sorted(marks, key=lambda mark: mark.row is comparison.baseline):  # the baseline on top
            _draw(axes, mark, is_baseline=mark.row is comparison.baseline)
        axes.set(
            xlabel="accuracy on everyone's test data (share)", ylabel="accuracy on own test data (share)"
        )
        axes.margins(0.08)
        if limits:
            axes.set(xlim=limits[::2], ylim=limits[1::2])
        if frame:
            size = frame[2] - frame[0], frame[3] - frame[1]
            axes.add_patch(
                Rectangle(frame[:2], *size, fill=False, edgecolor=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            )
        if keyed:
            handles = [_handle(mark) for mark in marks]
            figure.legend(
                handles=handles,
                loc="outside lower center",
                ncols=2,
                frameon=False,
                fontsize=7.5,
                handlelength=2.6,
            )
        _label(axes, marks, labelled, comparison.baseline, frame)
    return figure


def _marks(comparison: Comparison) -> list[Mark]:
    baseline = comparison.baseline
    known = [
        (row, everyone, own)
        for row in comparison.rows
        if (own := row.mean("accuracy_local")) is not None
        and (everyone := row.mean("accuracy_global")) is not None
    ]
    numbered = len(known) > MOST_NAMED
    marks: list[Mark] = []
    curves = [baseline.frontier()]
    for at, (row, x, y) in enumerate(known):
        curve = row.frontier()
        if row is not baseline:  # variants that differ only in the prior share a curve
            curve = [] if curve in curves else curve
            curves.append(curve)
        prior = (
            number(row.runs[0].result, "prior") if row.runs and row is baseline and row.frontier() else None
        )
        name = picture_text(row.name, 26) + ("" if prior is None else f", prior {prior:g}")
        look = (COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)], LINES[at % len(LINES)])
        colour, marker, line = (LOCAL, "D", "-") if row is baseline else look
        text, key = (str(at + 1), f"{at + 1}  {name}") if numbered else (name, "")
        marks.append(Mark(row, x, y, curve, colour, marker, line, text, key))
    return marks


def _draw(axes: Axes, mark: Mark, is_baseline: bool) -> None:
    if mark.curve:
        look: dict[str, Any] = (
            {"marker": "o", "markersize": 3.5, "linewidth": 2.2}
            if is_baseline
            else {"linewidth": 1, "alpha": 0.75}
        )
        _, x, y = zip(*mark.curve, strict=True)
        axes.plot(x, y, color=mark.colour, linestyle=mark.line, zorder=3 if is_baseline else 2, **look)
    bars: dict[str, Any] = {
        "xerr": mark.row.spread("accuracy_global"),
        "yerr": mark.row.spread("accuracy_local"),
    }
    axes.errorbar(mark.x, mark.y, **bars, fmt="none", ecolor=mark.colour, elinewidth=0.7, alpha=0.6, zorder=3)
    size = 9 if is_baseline else 6.5
    edge: dict[str, Any] = {"markeredgecolor": SURFACE, "markeredgewidth": 0.7}
    axes.plot(
        [mark.x],
        [mark.y],
        marker=mark.marker,
        markersize=size,
        color=mark.colour,
        linestyle="none",
        zorder=5,
        **edge,
    )


def _handle(mark: Mark) -> Line2D:
    line: Any = mark.line if mark.curve else "none"
    return Line2D(
        [],
        [],
        color=mark.colour,
        marker=mark.marker,
        markersize=6,
        linestyle=line,
        linewidth=1.2,
        label=mark.key or mark.text,
    )


def _label(
    axes: Axes, marks: Sequence[Mark], labelled: Sequence[Mark], baseline: RowResults, frame: Box | None
) -> None:
    """Write labels that cover no mark and no label; a thin line joins a distant label to its mark."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    figure.draw_without_rendering()  # this fixes the position of each point
    unit = figure.dpi / 72

    def place(x: float, y: float) -> tuple[float, float]:
        """A data point's position in points."""
        across, up = axes.transData.transform((x, y))
        return across / unit, up / unit

    wanted: list[tuple[float, float, str, dict[str, Any]]] = []
    for mark in labelled:
        weight = "bold" if mark.row is baseline else "normal"
        wanted.append((mark.x, mark.y, mark.text, {"color": mark.colour, "weight": weight}))
    ends = next((mark.curve for mark in marks if mark.row is baseline and len(mark.curve) > 1), [])
    for prior, x, y in (ends[0], ends[-1]) if ends and not frame else ():
        wanted.append((x, y, f"prior {prior:g}", {"color": MUTED, "style": "italic"}))

    inside = axes.get_window_extent()
    room = (inside.x0 / unit, inside.y0 / unit, inside.x1 / unit, inside.y1 / unit)
    hard = [_around(*place(mark.x, mark.y), 5) for mark in marks]
    soft = [_around(*at, 2) for mark in marks for at in _along([place(x, y) for _, x, y in mark.curve])]
    if frame:
        left, low, right, high = frame
        corners = (left, low), (right, low), (right, high), (left, high), (left, low)
        soft += [_around(*at, 1) for at in _along([place(*corner) for corner in corners])]
    for mark in marks:
        across, up = mark.row.spread("accuracy_global") or 0.0, mark.row.spread("accuracy_local") or 0.0
        bars = (
            [(mark.x - across, mark.y), (mark.x + across, mark.y)],
            [(mark.x, mark.y - up), (mark.x, mark.y + up)],
        )
        soft += [_around(*at, 1) for bar in bars for at in _along([place(*end) for end in bar])]
    for x, y, text, font in wanted:
        trial = axes.annotate(text, (x, y), fontsize=8, **font)
        extent = Text.get_window_extent(trial)
        trial.remove()
        aside, above, leader = _free(
            place(x, y), (extent.width / unit, extent.height / unit), room, hard, soft
        )
        arrow: dict[str, Any] | None = (
            {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
            if leader
            else None
        )
        look: dict[str, Any] = {"fontsize": 8, "arrowprops": arrow, "zorder": 6, **font}
        note = axes.annotate(
            text, (x, y), (aside, above), textcoords="offset points", ha="center", va="center", **look
        )
        note.set_in_layout(False)


def _free(
    point: tuple[float, float], size: tuple[float, float], room: Box, hard: list[Box], soft: list[Box]
) -> tuple[float, float, bool]:
    """Position of a label's centre relative to its mark (right, up), and whether it needs a line.

    The label's box is added to the hard obstacles.
    """
    (x, y), (width, height) = point, size
    best = (math.inf, 0.0, 0.0, False, (x, y, x, y))
    for ring in LABEL_DISTANCES:
        for turn in range(24):
            across, upward = math.cos(turn * math.pi / 12), math.sin(turn * math.pi / 12)
            right, up = across * (5 + ring + width / 2), upward * (5 + ring + height / 2)
            box = (x + right - width / 2, y + up - height / 2, x + right + width / 2, y + up + height / 2)
            leader = ring > 4
            path = [_around(*at, 0.5) for at in _along([point, (x + right, y + up)])][2:] if leader else []
            cost = ring / 3 + (abs(upward) < 0.1 or abs(across) < 0.1) * -0.5 + leader
            cost += 60 * sum(_meet(box, other) for other in hard) + 2.5 * sum(
                _meet(box, other) for other in soft
            )
            cost += 15 * sum(
                any(_meet(step, other) for step in path)
                for other in hard
                if not _meet(other, _around(x, y, 0.1))
            )
            cost += 500 * (box[0] < room[0] or box[1] < room[1] or box[2] > room[2] or box[3] > room[3])
            best = min(best, (cost, right, up, leader, box))
    hard.append(best[-1])
    return best[1], best[2], best[3]


def _around(x: float, y: float, radius: float) -> Box:
    return x - radius, y - radius, x + radius, y + radius


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _along(corners: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """Positions at intervals of about 4 points along a line."""
    steps = []
    for (x, y), (to_x, to_y) in pairwise(corners):
        count = max(1, round(math.dist((x, y), (to_x, to_y)) / 4))
        steps += [(x + (to_x - x) * step / count, y + (to_y - y) * step / count) for step in range(count + 1)]
    return steps


def _numbers(rows: Sequence[RowResults]) -> Numbers:
    out: list[list[Any]] = []
    for row in rows:
        own, everyone = row.mean("accuracy_local"), row.mean("accuracy_global")
        out.append(
            [
                row.name,
                "result",
                None,
                everyone,
                own,
                row.spread("accuracy_global"),
                row.spread("accuracy_local"),
            ]
        )
        out += [[row.name, "frontier", *point, None, None] for point in row.frontier()]
    return Numbers(
        (
            "row",
            "kind",
            "prior",
            "accuracy_global",
            "accuracy_local",
            "accuracy_global_sd",
            "accuracy_local_sd",
        ),
        out,
    )


def _hovers(axes: Axes, marks: Sequence[Mark]) -> list[Hover]:
    """What each mark and each point of a curve says; the marks come last, on top."""
    along = [
        Hover(axes, x, y, f"{clip(mark.row.name)}, {frontier_text(prior, x, y)}")
        for mark in marks
        for prior, x, y in mark.curve
        if axes.viewLim.contains(x, y)
    ]
    return along + [Hover(axes, mark.x, mark.y, _mark_text(mark)) for mark in marks]


def _mark_text(mark: Mark) -> str:
    return f"{clip(mark.row.name)}: own data {percent(mark.y)}, everyone's data {percent(mark.x)}"


def _spoken(marks: Sequence[Mark]) -> str:
    each = "; ".join(f"{mark.row.name} {percent(mark.y)} and {percent(mark.x)}" for mark in marks)
    return f"Accuracy on own and on everyone's test data: {each}."
