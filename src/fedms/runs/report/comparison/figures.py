"""The pictures of a comparison, and those of single clients, the gate, active blocks and the partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedms.core.formatting import clip, decimal, percent
from fedms.runs.reading.comparison import Comparison, RowResults, moments, records, unlikeness
from fedms.runs.reading.run import number
from fedms.runs.report.comparison.frontier import MARKERS, close_up, frontier
from fedms.runs.report.comparison.progress import over_bytes, over_flops, over_rounds
from fedms.runs.report.drawing import (
    GLOBAL,
    INK,
    LOCAL,
    MUTED,
    SURFACE,
    WIDTH,
    Hover,
    Numbers,
    Picture,
    heat_map,
    picture_text,
    style,
)
from fedms.runs.report.run.figures import MOST_DOTS, clients_height, dumbbells, partition_picture

MOST_CELLS = 26
"""Up to this number of rounds, active blocks are also written as numbers."""


def pictures(comparison: Comparison) -> list[Picture]:
    """All pictures this comparison has the data for."""
    drawers: list[Callable[[Comparison], Picture | None]] = [
        frontier,
        close_up,
        gate,
        over_rounds,
        over_bytes,
        over_flops,
        clients,
        blocks,
        partition,
    ]
    return [picture for drawer in drawers if (picture := drawer(comparison)) is not None]


def clients(comparison: Comparison) -> Picture | None:
    """Each client's accuracy with the baseline and with the best other row."""
    pairs = _client_pairs(comparison)
    if not pairs:
        return None
    baseline, rival = comparison.baseline, _rival(comparison)
    other = rival.name if rival else ""
    first = pairs[0][0]
    ordered = sorted(
        (pair[1:] for pair in pairs if pair[0] == first), key=lambda pair: (pair[1] or 0.0, pair[2] or 0.0)
    )
    step = -(-len(ordered) // MOST_DOTS)
    with style("clients"):
        figure = Figure(figsize=(WIDTH, clients_height(len(ordered[::step]))))
        axes = figure.subplots()
        names = picture_text(baseline.name, 24), picture_text(other, 24)
        hovers = dumbbells(axes, ordered[::step], names)
        axes.set_xlabel("accuracy on own test data (share)")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=2,
            frameon=False,
            handletextpad=0.2,
        )
    both = [(one, two) for *_, one, two in pairs if one is not None and two is not None]
    ahead, level = sum(one > two for one, two in both), sum(one == two for one, two in both)
    tally = (
        f" Over all seeds, {baseline.name} is higher {ahead} times of {len(both)} and equal {level} times."
        if both
        else ""
    )
    against = (
        f" with {baseline.name} and with {other}, the best other row on own data"
        if rival
        else f" with {baseline.name}"
    )
    return Picture(
        "clients",
        "Clients",
        f"Each client's accuracy on its own test data{against}, seed {first}.{tally}",
        figure,
        Numbers(
            ("seed", "client", baseline.name, *([other] if rival else [])),
            [pair[: 4 if rival else 3] for pair in pairs],
        ),
        hovers=hovers,
    )


def _rival(comparison: Comparison) -> RowResults | None:
    """The best of the other rows on own data."""
    known = [
        row
        for row in comparison.rows
        if row is not comparison.baseline and row.mean("accuracy_local") is not None
    ]
    return max(known, key=lambda row: row.mean("accuracy_local") or 0.0, default=None)


def _client_pairs(comparison: Comparison) -> list[tuple[Any, str, float | None, float | None]]:
    """(seed, client, the baseline's accuracy, the rival's)."""
    rival = _rival(comparison)
    others = {
        (run.seed, str(client.get("name"))): number(client, "accuracy_local")
        for run in (rival.runs if rival else [])
        for client in records(run.result.get("per_client"))
    }
    return [
        (run.seed, name, number(client, "accuracy_local"), others.get((run.seed, name)))
        for run in comparison.baseline.runs
        for client in records(run.result.get("per_client"))
        for name in [str(client.get("name"))]
    ]


def gate(comparison: Comparison) -> Picture | None:
    """Gate weight of the global expert over the distance of a client's classes from everyone's."""
    row, points = next(
        (
            (row, points)
            for row in sorted(comparison.rows, key=lambda row: row is not comparison.baseline)
            if (points := _gate_points(row))
        ),
        (None, []),
    )
    if row is None:
        return None
    seeds = list(dict.fromkeys(seed for seed, *_ in points))
    with style("gate"):
        figure = Figure(figsize=(WIDTH, 3.4))
        axes = figure.subplots()
        for at, seed in enumerate(seeds):
            x, y = zip(*((x, y) for of, _, x, y in points if of == seed), strict=True)
            look: dict[str, Any] = {
                "color": (LOCAL, GLOBAL, MUTED)[at % 3],
                "marker": MARKERS[at % len(MARKERS)],
                "edgecolors": SURFACE,
            }
            axes.scatter(
                x, y, s=34, linewidths=0.6, alpha=0.85, label=f"seed {seed}", clip_on=False, zorder=3, **look
            )
        axes.margins(0.12)
        axes.set(
            xlabel="distance of own classes from everyone's (total variation)",
            ylabel="gate weight of the global expert",
        )
        if 1 < len(seeds) <= len(MARKERS):
            figure.legend(loc="outside upper left", ncols=5, frameon=False, handletextpad=0.2)
    return Picture(
        "gate",
        "Gate",
        f"Gate weight of the global expert of {row.name} on a client's own test data, over the distance of "
        "that client's class shares from everyone's class shares (total variation, 0 to 1).",
        figure,
        Numbers(
            ("row", "seed", "client", "total_variation", "gate_global_share"),
            [[row.name, *point] for point in points],
        ),
        hovers=[
            Hover(axes, x, y, f"{clip(client)}, seed {seed}: gate weight {percent(y)}, distance {decimal(x)}")
            for seed, client, x, y in points
        ],
    )


def _gate_points(row: RowResults) -> list[tuple[Any, str, float, float]]:
    """(seed, client, distance, gate weight)."""
    points = []
    for run in row.runs:
        held = run.result.get("partition")
        if not isinstance(held, dict) or not held.get("counts"):
            continue
        distances = dict(zip(map(str, held["clients"]), unlikeness(held["counts"]), strict=True))
        for client in records(run.result.get("per_client")):
            name, share = str(client.get("name")), number(client, "gate_global_share")
            if share is not None and name in distances:
                points.append((run.seed, name, distances[name], share))
    return points


def blocks(comparison: Comparison) -> Picture | None:
    """Active blocks over rounds, one line of cells per row."""
    rounds = [(row, moments(row)) for row in comparison.rows]
    known = [(row, each) for row, each in rounds if any(moment.active_blocks for moment in each)]
    if not known:
        return None
    last = max(each[-1].round for _, each in known)
    values = [[float("nan")] * last for _ in known]
    for line, (_, each) in zip(values, known, strict=True):
        for moment in each:
            line[moment.round - 1] = float("nan") if moment.active_blocks is None else moment.active_blocks
    with style("blocks"):
        figure = Figure(figsize=(WIDTH, 1.2 + 0.22 * len(known)))
        axes = figure.subplots()
        image = heat_map(
            axes,
            values,
            fullest=0.7,
            vmin=0,
            interpolation="none",
            extent=(0.5, last + 0.5, len(known) - 0.5, -0.5),
        )
        for at, (_, each) in enumerate(known):
            for before, moment in zip([None, *each], each, strict=False):
                if before and before.stage != moment.stage:
                    axes.plot([moment.round - 0.5] * 2, [at - 0.5, at + 0.5], color=INK, linewidth=1.2)
                if last <= MOST_CELLS and moment.active_blocks is not None:
                    text = f"{moment.active_blocks:.1f}".removesuffix(".0")
                    axes.text(
                        moment.round, at, text, ha="center", va="center", fontsize=7 if last <= 16 else 5.5
                    )
        axes.set_yticks(range(len(known)), [picture_text(row.name, 22) for row, _ in known], fontsize=7.5)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("round")
        if last > MOST_CELLS:
            figure.colorbar(image, ax=axes, pad=0.01, aspect=30, label="active blocks (count)")
    return Picture(
        "blocks",
        "Active blocks",
        "Number of transformer blocks with active LoRA matrices in each round, mean over seeds. "
        "A vertical line marks the start of a stage.",
        figure,
        Numbers(
            ("row", "stage", "round", "active_blocks"),
            [
                [row.name, moment.stage, moment.round, moment.active_blocks]
                for row, each in known
                for moment in each
            ],
        ),
    )


def partition(comparison: Comparison) -> Picture | None:
    """The partition of the baseline's first run."""
    return (
        partition_picture(comparison.baseline.runs[0].result.get("partition"))
        if comparison.baseline.runs
        else None
    )
