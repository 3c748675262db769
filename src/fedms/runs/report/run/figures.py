"""The pictures of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedms.core.formatting import clip, decimal, scale, scaled
from fedms.runs.reading.run import FinishedRun, Span, number, spans
from fedms.runs.report.drawing import (
    GLOBAL,
    GRID,
    LOCAL,
    MUTED,
    SURFACE,
    THIRD,
    WIDTH,
    Numbers,
    Picture,
    cumulative,
    heat_map,
    label,
    name_ticks,
    picture_text,
    style,
)

MOST_DOTS = 300
MOST_NAMES = 60


def pictures(run: FinishedRun) -> list[Picture]:
    """All pictures this run has the data for."""
    drawers: list[Callable[[FinishedRun], Picture | None]] = [
        score,
        frontier,
        clients,
        blocks,
        traffic,
        partition,
    ]
    return [picture for drawer in drawers if (picture := drawer(run)) is not None]


def score(run: FinishedRun) -> Picture | None:
    """Validation score over rounds."""
    points = [
        (at, value)
        for at, record in enumerate(run.rounds, 1)
        if (value := number(record, "validation_score")) is not None
    ]
    if not points:
        return None
    with style("score"):
        figure, axes = _time_axes(spans(run.rounds), "accuracy on validation data (share)")
        for span in spans(run.rounds):  # no line between stages: they score different models
            inside = [(at, value) for at, value in points if span.first <= at <= span.last]
            axes.plot(
                *zip(*inside, strict=True), color=LOCAL, marker="o", markersize=4, clip_on=False
            ) if inside else None
        at, value = points[-1]
        axes.annotate(
            decimal(value),
            (at, value),
            (0, 7),
            textcoords="offset points",
            ha="right",
            color=LOCAL,
            weight="bold",
        )
        axes.margins(y=0.18)
    return Picture(
        "score",
        "Validation score",
        "Mean accuracy on the clients' validation data after each round. The line breaks between stages, "
        "because each stage scores the model that it trains.",
        figure,
        _by_step(run, "validation_score"),
    )


def _by_step(run: FinishedRun, *keys: str) -> Numbers:
    """The numbers of a picture over time: one row per line of metrics.jsonl."""
    rows = [
        [at, record.get("stage"), record.get("round"), *(number(record, key) for key in keys)]
        for at, record in enumerate(run.rounds, 1)
    ]
    return Numbers(("step", "stage", "round", *keys), rows)


def blocks(run: FinishedRun) -> Picture | None:
    """Active blocks over rounds."""
    values = [number(record, "active_blocks") for record in run.rounds]
    known = [value for value in values if value is not None]
    if not known:
        return None
    with style("blocks"):
        figure, axes = _time_axes(spans(run.rounds), "active blocks (count)")
        edges = [at - 0.5 for at in range(1, len(values) + 2)]
        heights = [value or 0 for value in values]
        axes.stairs(heights, edges, color=THIRD, alpha=0.18, fill=True)
        axes.plot(edges, [*heights, heights[-1]], drawstyle="steps-post", color=THIRD, linewidth=2)
        axes.set_ylim(0, max(known) + 0.6)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return Picture(
        "blocks",
        "Active blocks",
        "Number of transformer blocks with active LoRA matrices in each round: how deep each client trained.",
        figure,
        _by_step(run, "active_blocks"),
    )


def traffic(run: FinishedRun) -> Picture | None:
    """Bytes sent and received, summed over rounds."""
    kinds = (
        ("uplink_bytes", "up", LOCAL, "-"),
        ("downlink_bytes", "down", GLOBAL, "--"),
        ("evaluation_bytes", "evaluation", THIRD, ":"),
    )
    sums = {key: cumulative([number(record, key) or 0 for record in run.rounds]) for key, *_ in kinds}
    top = max((values[-1] for values in sums.values() if values), default=0)
    if not top:
        return None
    power, prefix = scale(top)
    with style("traffic"):
        figure, axes = _time_axes(spans(run.rounds), f"bytes so far ({prefix}B)")
        for key, label, colour, line in kinds:
            if sums[key][-1]:
                values = [0.0, *(value / 10**power for value in sums[key])]
                total = scaled(sums[key][-1], "B")
                axes.plot(
                    [at + 0.5 for at in range(len(values))],
                    values,
                    color=colour,
                    linestyle=line,
                    label=f"{label}, {total} in all",
                )
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", handlelength=2.4, facecolor=SURFACE, edgecolor="none", framealpha=0.9)
    return Picture(
        "traffic",
        "Traffic",
        "Bytes that clients sent (up) and received (down), summed over clients and rounds. Models that are "
        "sent only to be scored count separately, as evaluation.",
        figure,
        _by_step(run, *sums),
    )


def clients(run: FinishedRun) -> Picture | None:
    """Each client's two accuracies, and its gate weight of the global expert."""
    known = [
        record
        for record in run.result.get("per_client") or []
        if number(record, "accuracy_local") is not None
    ]
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
        dumbbells(axes, [(r.get("name"), *_accuracies(r)) for r in shown], ("own data", "everyone's data"))
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
    )


def clients_height(count: int) -> float:
    """Height in inches of a picture with one line per client."""
    return max(2.4, min(7.0, 1.1 + (0.17 if count <= MOST_NAMES else 0.02) * count))


def dumbbells(
    axes: Axes, rows: Sequence[tuple[Any, float | None, float | None]], labels: tuple[str, str]
) -> None:
    """Draw two accuracies of each client, joined by a line.

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


def _accuracies(record: Mapping[str, Any]) -> tuple[float, float | None]:
    return number(record, "accuracy_local") or 0.0, number(record, "accuracy_global")


def frontier(run: FinishedRun) -> Picture | None:
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
    )


def partition(run: FinishedRun) -> Picture | None:
    """Samples of each class at each client."""
    return partition_picture(run.result.get("partition"))


def partition_picture(described: Any) -> Picture | None:
    """Samples of each class at each client, from a result's `partition`; None if the result has none."""
    if not isinstance(described, dict) or not described.get("counts"):
        return None
    rows = zip(described["clients"], described["counts"], strict=True)
    return Picture(
        "partition",
        "Partition",
        "Number of train and validation samples of each class at each client.",
        partition_figure(described),
        Numbers(("client", *described["classes"]), [[client, *counts] for client, counts in rows]),
        wide=True,
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


def _time_axes(stages: Sequence[Span], ylabel: str) -> tuple[Figure, Axes]:
    """Axes over all rounds. Each stage has a band with its name above."""
    figure = Figure(figsize=(WIDTH, 3.0))
    axes = figure.subplots()
    last = stages[-1].last
    axes.set(xlim=(0.5, last + 0.5), xlabel="step (a round, or an exchange of statistics)", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.grid(axis="x", visible=False)
    raised = 0  # in lines of text: a name that is longer than its band moves one line up
    for index, span in enumerate(stages):
        start, name = (span.first - 1) / last, clip(span.stage, 20)
        if index:
            axes.axvline(span.first - 0.5, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        too_long = 0.019 * len(name) > (span.last - span.first + 1) / last and index < len(stages) - 1
        raised = raised + 1 if too_long else 0
        place: dict[str, Any] = {
            "xy": (start, 1),
            "xytext": (2, 3 + 11 * raised),
            "xycoords": "axes fraction",
            "textcoords": "offset points",
        }
        axes.annotate(picture_text(name), **place, fontsize=8, color=MUTED, style="italic")
    return figure, axes
