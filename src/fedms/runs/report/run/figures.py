"""The pictures of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedms.core.formatting import clip, percent, plural
from fedms.runs.reading.run import Run, number
from fedms.runs.report.drawing import (
    GLOBAL,
    GRID,
    LOCAL,
    MUTED,
    SURFACE,
    THIRD,
    WIDTH,
    Hover,
    Numbers,
    Picture,
    cell,
    heat_map,
    label,
    name_ticks,
    picture_text,
    style,
)
from fedms.runs.report.run.answers import classes, confusion
from fedms.runs.report.run.rounds import blocks, loss, score, traffic

MOST_DOTS = 300
MOST_NAMES = 60


def pictures(run: Run) -> list[Picture]:
    """All pictures this run has the data for."""
    drawers: list[Callable[[Run], Picture | None]] = [
        frontier,
        clients,
        score,
        loss,
        classes,
        confusion,
        blocks,
        traffic,
        partition,
    ]
    return [picture for drawer in drawers if (picture := drawer(run)) is not None]


def clients(run: Run) -> Picture | None:
    """Each client's two accuracies, and its gate weight of the global expert."""
    known = [record for record in run.clients if number(record, "accuracy_local") is not None]
    if not known:
        return None
    known.sort(
        key=lambda record: (number(record, "accuracy_local") or 0.0, number(record, "accuracy_global") or 0.0)
    )
    step = -(-len(known) // MOST_DOTS)
    shown = known[::step]
    places = range(len(shown))
    gated = any(number(record, "gate_global_share") is not None for record in shown)
    with style("clients"):
        figure = Figure(figsize=(WIDTH, clients_height(len(shown))))
        panels = figure.subplots(
            1, 2 if gated else 1, sharey=True, width_ratios=[3, 1] if gated else None, squeeze=False
        )[0]
        axes = panels[0]
        kinds = ("own data", "everyone's data")
        hovers = dumbbells(axes, [(r.get("name"), *_accuracies(r)) for r in shown], kinds)
        axes.set_xlim(0, 1)
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=2,
            frameon=False,
            handletextpad=0.2,
        )
        if gated:
            share = panels[1]
            share.barh(
                places,
                [number(r, "gate_global_share") or 0 for r in shown],
                color=THIRD,
                height=0.7 if len(shown) <= MOST_NAMES else 1.0,
            )
            share.set(xlim=(0, 1), xlabel="gate weight of\nthe global expert", xticks=[0, 0.5, 1])
            share.grid(axis="y", visible=False)
            share.tick_params(axis="y", length=0)
    note = f" One in {step} of {len(known):,} clients is shown." if step > 1 else ""
    gate_note = " Bars: gate weight of the global expert on the client's own test data." if gated else ""
    return Picture(
        "clients",
        "Clients",
        "Accuracy of each client's model on its own test data and on everyone's test data, "
        f"sorted by own data.{gate_note}{note}",
        figure,
        Numbers(
            ("client", "accuracy_local", "accuracy_global", "gate_global_share"),
            [[r.get("name"), *_accuracies(r), number(r, "gate_global_share")] for r in known],
        ),
        hovers=hovers + (_share_hovers(panels[1], shown) if gated else []),
    )


def _share_hovers(axes: Axes, records: Sequence[Mapping[str, Any]]) -> list[Hover]:
    """What each bar of a gate weight says, along its whole line."""
    return [
        Hover(axes, 0, at - 0.5, f"{clip(str(record.get('name')))}, gate weight: {percent(share)}", 1, 1)
        for at, record in enumerate(records)
        if (share := number(record, "gate_global_share")) is not None
    ]


def clients_height(count: int) -> float:
    """Height in inches of a picture with one line per client."""
    return max(2.4, min(7.0, 1.1 + (0.17 if count <= MOST_NAMES else 0.02) * count))


def dumbbells(
    axes: Axes, rows: Sequence[tuple[Any, float | None, float | None]], labels: tuple[str, str]
) -> list[Hover]:
    """Draw two accuracies of each client, joined by a line; return what each mark says.

    Args:
        rows: (name, one, other) of each client, from the bottom up.
        labels: the names of both accuracies.
    """
    named = len(rows) <= MOST_NAMES
    size = 24 if named else 8
    pairs = [
        (at, one, other) for at, (_, one, other) in enumerate(rows) if one is not None and other is not None
    ]
    axes.hlines(
        [at for at, *_ in pairs],
        [one for _, one, _ in pairs],
        [other for *_, other in pairs],
        color=GRID,
        linewidth=1.2,
        zorder=1,
    )
    for which, (colour, marker) in enumerate(((LOCAL, "o"), (GLOBAL, "D"))):
        marks = [(row[1 + which], at) for at, row in enumerate(rows) if row[1 + which] is not None]
        if marks:
            x, y = zip(*marks, strict=True)
            axes.scatter(
                x,
                y,
                s=size,
                color=colour,
                marker=marker,
                label=labels[which],
                zorder=3 - which,
                clip_on=False,
            )
    axes.set(xlabel="accuracy (share)", ylim=(-0.8, len(rows) - 0.2))
    axes.grid(axis="y", visible=False)
    if named:
        axes.set_yticks(range(len(rows)), [picture_text(name, 16) for name, *_ in rows], fontsize=7.5)
    else:
        axes.set(yticks=[], ylabel="clients, sorted by accuracy on own data")
    return [
        Hover(axes, value, at, f"{clip(str(name))}, {kind}: {percent(value)}")
        for at, (name, *values) in enumerate(rows)
        for kind, value in zip(labels, values, strict=True)
        if value is not None
    ]


def _accuracies(record: Mapping[str, Any]) -> tuple[float, float | None]:
    return number(record, "accuracy_local") or 0.0, number(record, "accuracy_global")


def frontier(run: Run) -> Picture | None:
    """accuracy_local against accuracy_global over the prior."""
    points = [
        (everyone, own, prior)
        for point in run.result.get("frontier") or []
        if (own := number(point, "accuracy_local")) is not None
        and (everyone := number(point, "accuracy_global")) is not None
        and (prior := number(point, "prior")) is not None
    ]
    if not points:
        return None
    points.sort(key=lambda point: point[2])
    used = number(run.result, "prior")
    own, everyone = number(run.result, "accuracy_local"), number(run.result, "accuracy_global")
    with style("frontier"):
        figure = Figure(figsize=(WIDTH, 3.6))
        axes = figure.subplots()
        curve = [point[0] for point in points], [point[1] for point in points]
        axes.plot(*curve, color=MUTED, marker="o", markersize=4.5, linewidth=1.4)
        ends = (points[0], "global expert", -8, 0), (points[-1], "local expert", 0, 8)
        for (x, y, prior), name, right, up in ends if points[0][:2] != points[-1][:2] else ():
            if prior != used:
                text = f"prior {prior:g}" + (f" ({name})" if prior in (0, 1) else "")
                label(axes, x, y, text, right, up, color=MUTED)
        if used is not None and own is not None and everyone is not None:
            axes.plot(
                [everyone],
                [own],
                marker="D",
                markersize=9,
                color=GLOBAL,
                markeredgecolor=SURFACE,
                linestyle="none",
                zorder=4,
            )
            label(axes, everyone, own, f"prior {used:g} (this run)", 4, 8, color=GLOBAL, weight="bold")
        axes.set(
            xlabel="accuracy on everyone's test data (share)", ylabel="accuracy on own test data (share)"
        )
        axes.margins(x=0.2, y=0.2)
    return Picture(
        "frontier",
        "Frontier",
        "Both accuracies for different priors. Prior 1 uses the local expert alone, prior 0 the global "
        "expert alone. Up and to the right is better.",
        figure,
        Numbers(("prior", "accuracy_global", "accuracy_local"), [(prior, x, y) for x, y, prior in points]),
        hovers=[Hover(axes, x, y, frontier_text(prior, x, y)) for x, y, prior in points],
    )


def frontier_text(prior: float, everyone: float, own: float) -> str:
    """What a point of a frontier says."""
    return f"prior {prior:g}: own data {percent(own)}, everyone's data {percent(everyone)}"


def partition(run: Run) -> Picture | None:
    """Samples of each class at each client."""
    return partition_picture(run.result.get("partition"))


def partition_picture(described: Any) -> Picture | None:
    """Samples of each class at each client, from a result's `partition`; None if the result has none."""
    if not isinstance(described, dict) or not described.get("counts"):
        return None
    rows = [*zip(described["clients"], described["counts"], strict=True)]
    figure = partition_figure(described)
    return Picture(
        "partition",
        "Partition",
        "Number of train and validation samples of each class at each client.",
        figure,
        Numbers(("client", *described["classes"]), [[client, *counts] for client, counts in rows]),
        wide=True,
        hovers=[
            cell(figure.axes[0], at, line, f"{clip(client)}, {clip(name)}: {plural(count, 'sample')}")
            for line, (client, counts) in enumerate(rows)
            for at, (name, count) in enumerate(zip(described["classes"], counts, strict=True))
            if count
        ],
    )


def partition_figure(described: Mapping[str, Any]) -> Figure:
    """A heat map of sample counts.

    Args:
        described: `classes` and `clients` (names), `counts` (one row per client, one column per class).
    """
    classes, names, counts = described["classes"], described["clients"], described["counts"]
    with style("partition"):
        figure = Figure(figsize=(8, min(9.0, 1.9 + 0.16 * len(names))))
        axes = figure.subplots()
        top = max((max(row, default=0) for row in counts), default=0)
        # "none" stores one pixel per cell in the SVG, which scales without blur
        sharp = "none" if len(names) <= 1000 else "nearest"
        image = heat_map(axes, counts, norm=PowerNorm(0.5, 0, max(1, top)), interpolation=sharp)
        name_ticks(axes.set_xticks, classes, 64, rotation=90)
        name_ticks(axes.set_yticks, names, 48)
        axes.set(xlabel=f"classes ({len(classes):,})", ylabel=f"clients ({len(names):,})")
        bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30, label="samples (count)")
        bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        bar.ax.grid(False)
    return figure
