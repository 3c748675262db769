"""The pictures of a run over its rounds: scores, losses, active blocks, traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedms.core.formatting import MISSING, clip, decimal, scale, scaled
from fedms.runs.reading.run import Run, Span, number, spans
from fedms.runs.report.drawing import (
    GLOBAL,
    LOCAL,
    MUTED,
    SURFACE,
    THIRD,
    WIDTH,
    Hover,
    Numbers,
    Picture,
    cumulative,
    long_enough,
    picture_text,
    style,
)


def score(run: Run) -> Picture | None:
    """Validation score over rounds."""
    return _curve(
        run,
        ("score", "validation_score", "accuracy on validation data (share)", LOCAL),
        "Validation score",
        "Mean accuracy on the clients' validation data after each round. The line breaks between stages, "
        "because each stage scores the model that it trains.",
    )


def loss(run: Run) -> Picture | None:
    """Training loss over rounds."""
    return _curve(
        run,
        ("loss", "train_loss", "training loss (nats)", GLOBAL),
        "Training loss",
        "Mean loss on the training data of the round's clients while they train. The line breaks between "
        "stages, because each stage trains another expert.",
    )


def _curve(run: Run, what: tuple[str, str, str, str], title: str, caption: str) -> Picture | None:
    """A number of each round, with one line a stage.

    Args:
        what: the picture's name, the key in metrics.jsonl, the label of the axis, the colour.
    """
    name, key, ylabel, colour = what
    points = [
        (at, value) for at, record in enumerate(run.rounds, 1) if (value := number(record, key)) is not None
    ]
    if not points:
        return None
    stages = spans(run.rounds)
    with style(name):
        figure, axes = _time_axes(stages, ylabel)
        for span in stages:  # no line between stages: they are about different models
            inside = [(at, value) for at, value in points if span.first <= at <= span.last]
            if inside:
                x, y = zip(*inside, strict=True)
                axes.plot(x, y, color=colour, marker="o", markersize=4, clip_on=False)
        font: dict[str, Any] = {"color": colour, "weight": "bold"}
        falls = len(points) > 1 and points[-1][1] < points[-2][1]
        aside = (0, -14 if falls else 7)  # where the line does not come from
        text = decimal(points[-1][1])
        axes.annotate(text, points[-1], aside, textcoords="offset points", ha="right", **font)
        axes.margins(y=0.18)
    said = [f"{place(run.rounds[at - 1])}: {decimal(value, 4)}" for at, value in points]
    hovers = [Hover(axes, at, value, text) for (at, value), text in zip(points, said, strict=True)]
    return Picture(name, title, caption, figure, _by_step(run, key), hovers=hovers)


def place(record: Mapping[str, Any]) -> str:
    """`global 3`; only the name for a line that is not a round, such as the exchange of statistics."""
    return f"{record.get('stage', MISSING)} {record.get('round') or ''}".strip()


def _by_step(run: Run, *keys: str) -> Numbers:
    """The numbers of a picture over time: one row per line of metrics.jsonl."""
    rows = [
        [at, record.get("stage"), record.get("round"), *(number(record, key) for key in keys)]
        for at, record in enumerate(run.rounds, 1)
    ]
    return Numbers(("step", "stage", "round", *keys), rows)


def blocks(run: Run) -> Picture | None:
    """Active blocks over rounds."""
    values = [number(record, "active_blocks") for record in run.rounds]
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return None  # the table of rounds says it; a flat line says no more
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


def traffic(run: Run) -> Picture | None:
    """Bytes sent and received, summed over rounds, if there are rounds enough for a curve."""
    if not long_enough([run.rounds_done]):
        return None
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
