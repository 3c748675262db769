"""Pictures of a comparison: validation accuracy over rounds, traffic and compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedms.core.formatting import clip, decimal, scale
from fedms.runs.reading.comparison import Comparison, Moment, RowResults, moments
from fedms.runs.report.drawing import (
    GLOBAL,
    INK,
    LOCAL,
    MUTED,
    Hover,
    Numbers,
    Picture,
    long_enough,
    picture_text,
    style,
)

PANELS = 4
"""Most panels side by side. One less leaves fewer holes for some numbers of rows."""


def over_rounds(comparison: Comparison) -> Picture | None:
    """Validation accuracy over rounds."""
    return _progress(comparison, "rounds", "Accuracy over rounds", "rounds", "", lambda moment: moment.round)


def over_bytes(comparison: Comparison) -> Picture | None:
    """Validation accuracy over bytes sent."""
    return _progress(
        comparison,
        "bytes",
        "Accuracy over traffic",
        "sent by clients so far",
        "B",
        lambda moment: moment.uplink_bytes,
    )


def over_flops(comparison: Comparison) -> Picture | None:
    """Validation accuracy over operations spent."""
    return _progress(
        comparison,
        "flops",
        "Accuracy over compute",
        "spent on training so far",
        "FLOP",
        lambda moment: moment.train_flops,
    )


def _progress(
    comparison: Comparison, name: str, title: str, xlabel: str, unit: str, reach: Callable[[Moment], float]
) -> Picture | None:
    """Validation accuracy over the cost `reach`: one panel per row, with all other rows in grey."""
    curves = {
        row.name: [moment for moment in moments(row) if moment.score is not None] for row in comparison.rows
    }
    shown = [row for row in comparison.rows if curves[row.name]]
    if not shown:
        return None
    stages = [[*stage] for row in shown for _, stage in groupby(curves[row.name], key=lambda m: m.stage)]
    if unit and not long_enough([*map(len, stages)]):
        return None  # over rounds the same curves are readable
    reached = [reach(moment) for row in shown for moment in curves[row.name]]
    power, prefix = scale(max(reached, default=0.0)) if unit else (0, "")

    def lines(row: RowResults) -> list[list[tuple[float, float, float]]]:
        """One line per stage, because stages score different models."""
        return [
            [(reach(m) / 10**power, m.score or 0.0, m.spread or 0.0) for m in stage]
            for _, stage in groupby(curves[row.name], key=lambda moment: moment.stage)
        ]

    with style(name):
        figure = _panels(comparison, shown, lines)
        axes = figure.axes[0]
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=not unit))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        figure.supxlabel(f"{xlabel} ({prefix}{unit or 'count'})", fontsize=9, color=INK)
    silent = [clip(row.name) for row in comparison.rows if row not in shown]
    return Picture(
        name,
        title,
        "Mean accuracy on the clients' validation data, over seeds. A line breaks between stages: a global "
        "stage scores the shared model, a local stage the clients' own models."
        + (f" No line, because nothing is trained: {', '.join(silent)}." if silent else ""),
        figure,
        Numbers(
            (
                "row",
                "stage",
                "round",
                "uplink_bytes",
                "train_flops",
                "validation_score",
                "validation_score_sd",
            ),
            [
                [r.name, m.stage, m.round, m.uplink_bytes, m.train_flops, m.score, m.spread]
                for r in shown
                for m in curves[r.name]
            ],
        ),
        wide=True,
        spoken="At the end: "
        + "; ".join(f"{row.name} {decimal(curves[row.name][-1].score)}" for row in shown)
        + ".",
        hovers=[
            Hover(axes, reach(m) / 10**power, m.score or 0.0, _moment_text(row, m))
            for axes, row in zip(figure.axes, shown, strict=False)
            for m in curves[row.name]
        ],
    )


def _moment_text(row: RowResults, moment: Moment) -> str:
    """What a mark of a curve says."""
    spread = "" if moment.spread is None else f" ± {decimal(moment.spread)}"
    return f"{clip(row.name)}, {moment.stage}, round {moment.round}: {decimal(moment.score)}{spread}"


def _panels(
    comparison: Comparison,
    shown: Sequence[RowResults],
    lines: Callable[[RowResults], list[list[tuple[float, float, float]]]],
) -> Figure:
    """One panel per row, all other rows in grey, the baseline dashed."""
    columns = (
        min(PANELS, len(shown))
        if len(shown) <= PANELS
        else min((PANELS, PANELS - 1), key=lambda columns: -len(shown) % columns)
    )
    height = -(-len(shown) // columns)
    figure = Figure(figsize=(8, 1.1 + 1.5 * height))
    panels = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, row in zip(panels, shown, strict=False):
        is_baseline = row is comparison.baseline
        others = [line for other in shown if other is not row for line in lines(other)]
        _progress_panel(axes, LOCAL if is_baseline else GLOBAL, lines(row), others)
        if not is_baseline and comparison.baseline in shown:
            for line in lines(comparison.baseline):
                x, y = [p[0] for p in line], [p[1] for p in line]
                axes.plot(x, y, color=LOCAL, linestyle=(0, (4, 2)), linewidth=1.3, zorder=3)
        weight = "bold" if is_baseline else "normal"
        axes.set_title(picture_text(row.name, 26), fontsize=8.5, loc="left", weight=weight, pad=3)
    for at, axes in enumerate(panels):
        axes.set_visible(at < len(shown))
        axes.tick_params(labelsize=7.5, labelbottom=at + columns >= len(shown))
    figure.supylabel("validation accuracy (share)", fontsize=9, color=INK)
    key = _progress_key(comparison, shown)
    figure.legend(handles=key, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    return figure


def _progress_panel(
    axes: Axes,
    colour: str,
    own: Sequence[Sequence[tuple[float, ...]]],
    others: Sequence[Sequence[tuple[float, ...]]],
) -> None:
    gap = [(float("nan"), float("nan"), 0.0)]
    joined = [point for line in others for point in (*line, *gap)]  # a single path keeps the file small
    if joined:
        axes.plot(
            [p[0] for p in joined], [p[1] for p in joined], color=MUTED, alpha=0.35, linewidth=1, zorder=1
        )
    for line in own:
        x, low, high = [p[0] for p in line], [p[1] - p[2] for p in line], [p[1] + p[2] for p in line]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
        axes.plot(x, [p[1] for p in line], color=colour, marker="o", markersize=2.6, linewidth=1.6, zorder=4)


def _progress_key(comparison: Comparison, shown: Sequence[RowResults]) -> list[Any]:
    own = Line2D([], [], color=GLOBAL, marker="o", markersize=3, label="this row")
    band = Patch(color=GLOBAL, alpha=0.2, linewidth=0, label="± 1 sd over seeds")
    baseline = Line2D(
        [],
        [],
        color=LOCAL,
        linestyle=(0, (4, 2)),
        linewidth=1.3,
        label=picture_text(comparison.baseline.name),
    )
    others = Line2D([], [], color=MUTED, alpha=0.35, label="all other rows")
    return [
        own,
        band,
        *([baseline] if comparison.baseline in shown else []),
        *([others] if len(shown) > 2 else []),
    ]
