"""The report of a run of `task: text`: its cards, clients and pictures in perplexities. Lower is better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from fedms.core.formatting import MISSING, clip, decimal, percent, whole
from fedms.runs.reading.measures import LOSS
from fedms.runs.reading.run import Run, number
from fedms.runs.report.drawing import GLOBAL, MUTED, SURFACE, WIDTH, Numbers, Picture, label, style
from fedms.runs.report.html import card, note, table
from fedms.runs.report.run.figures import MOST_DOTS, clients_height, dumbbells, partition
from fedms.runs.report.run.rounds import blocks, loss, score, traffic

MOST_ROWS = 1000
PERPLEXITY = "perplexity of a token (lower is better)"


def perplexity_at(record: dict[str, Any], key: str) -> float | None:
    """exp of the loss under this key."""
    loss = number(record, key)
    return None if loss is None else math.exp(min(loss, 700))


def heading(run: Run) -> str:
    """Both perplexities on one line."""
    own, everyone = (decimal(number(run.result, f"perplexity_{of}"), 1) for of in ("local", "global"))
    method = clip(str(run.result.get("method", MISSING)))
    return f"{method}: perplexity {own} on own data, {everyone} on everyone's data"


def cards(run: Run) -> Iterable[str]:
    """The headline numbers that are of this task alone."""
    r = run.result
    for title, key, meaning, kind in (
        (
            "Own data",
            "perplexity_local",
            "Perplexity of a token of a client's own test data under its model, mean over clients. "
            "Lower is better.",
            "local",
        ),
        (
            "Worst tenth",
            "perplexity_local_worst",
            "The same for the tenth of the clients with the highest loss.",
            "local",
        ),
        (
            "Everyone's data",
            "perplexity_global",
            "Perplexity of everyone's test data under a client's model, mean over clients.",
            "global",
        ),
        (
            "Global expert",
            "perplexity_global_shared",
            "Perplexity of clients' own test data under the global expert alone.",
            "global",
        ),
        ("Before training", "perplexity_base", "Perplexity of the same data before any training.", ""),
    ):
        if (value := number(r, key)) is not None:
            yield card(title, decimal(value, 1), meaning, kind)
    yield card(
        "Right tokens",
        percent(number(r, "accuracy_local")),
        "Share of the tokens of own test data that the model finds likeliest; of everyone's: "
        f"{percent(number(r, 'accuracy_global'))}.",
    )


def clients_table(run: Run) -> str:
    """The clients, the highest loss first."""
    records = sorted(run.result.get("per_client") or [], key=lambda each: -(number(each, LOSS.own) or 0.0))
    if not records:
        return note("This run has no results of single clients.")
    rows = [
        [
            clip(str(record.get("name", MISSING)), 80),
            whole(number(record, "samples")),
            decimal(perplexity_at(record, LOSS.own), 1),
            decimal(perplexity_at(record, LOSS.everyone), 1),
            decimal(number(record, "accuracy_local")),
            decimal(number(record, "gate_global_share")),
        ]
        for record in records[:MOST_ROWS]
    ]
    head = ["client", "train samples", "own perplexity", "everyone's perplexity", "right tokens, own data"]
    more = len(records) - MOST_ROWS
    left_out = f"{more:,} clients with lower losses are left out; result.json has all."
    return table([*head, "gate weight of the global expert"], rows) + (note(left_out) if more > 0 else "")


def pictures(run: Run) -> list[Picture]:
    """All pictures that this run has the data for."""
    drawn = [_score(run), loss(run), frontier(run), clients(run), blocks(run), traffic(run)]
    if has_classes(run.result):
        drawn.append(partition(run))
    return [picture for picture in drawn if picture is not None]


def has_classes(result: dict[str, Any]) -> bool:
    """Whether texts have labels, by which they can be counted."""
    described = result.get("partition")
    return isinstance(described, dict) and len(described["classes"]) > 1


def _score(run: Run) -> Picture | None:
    drawn = score(run)
    if drawn is None:
        return None
    drawn.figure.axes[0].set_ylabel("mean log p of a token (nats)")
    caption = (
        "Mean log-probability of a token of the clients' validation data after each round; higher is better. "
        "The line breaks between stages, because each stage scores the model that it trains."
    )
    return replace(drawn, caption=caption)


def frontier(run: Run) -> Picture | None:
    """Own perplexity over everyone's, along the prior."""
    points = [
        (prior, everyone, own)
        for point in run.result.get("frontier") or []
        if (prior := number(point, "prior")) is not None
        and (everyone := perplexity_at(point, LOSS.everyone)) is not None
        and (own := perplexity_at(point, LOSS.own)) is not None
    ]
    if not points:
        return None
    points.sort()
    used = number(run.result, "prior")
    own, everyone = (perplexity_at(run.result, key) for key in LOSS.keys)
    with style("frontier"):
        figure = Figure(figsize=(WIDTH, 3.6))
        axes = figure.subplots()
        axes.plot(
            *zip(*(point[1:] for point in points), strict=True), color=MUTED, marker="o", markersize=4.5
        )
        for (prior, x, y), name, right, up in (
            (points[0], "global expert", 6, 4),
            (points[-1], "local expert", 6, 4),
        ):
            if prior != used:
                label(axes, x, y, f"prior {prior:g} ({name})", right, up, color=MUTED)
        if used is not None and own is not None and everyone is not None:
            look: dict[str, Any] = {"color": GLOBAL, "markeredgecolor": SURFACE, "linestyle": "none"}
            axes.plot([everyone], [own], marker="D", markersize=9, zorder=4, **look)
            label(axes, everyone, own, f"prior {used:g} (this run)", 6, 6, color=GLOBAL, weight="bold")
        axes.set(xlabel="everyone's " + PERPLEXITY, ylabel="own perplexity")
        axes.margins(x=0.25, y=0.2)
    return Picture(
        "frontier",
        "Frontier",
        "Both perplexities for different priors. Prior 1 uses the local expert alone, prior 0 the global "
        "expert alone. Down and to the left is better.",
        figure,
        Numbers(("prior", "perplexity_global", "perplexity_local"), points),
    )


def clients(run: Run) -> Picture | None:
    """Each client's two perplexities."""
    known = [
        (str(each.get("name")), own, perplexity_at(each, LOSS.everyone))
        for each in run.result.get("per_client") or []
        if (own := perplexity_at(each, LOSS.own)) is not None
    ]
    if not known:
        return None
    known.sort(key=lambda each: -each[1])
    shown = known[:: -(-len(known) // MOST_DOTS)]
    with style("clients"):
        figure = Figure(figsize=(WIDTH, clients_height(len(shown))))
        axes = figure.subplots()
        dumbbells(axes, shown, ("own data", "everyone's data"))
        axes.set_xlabel(PERPLEXITY)
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper left", ncols=2, frameon=False, handletextpad=0.2)
    few = "" if len(shown) == len(known) else f" {len(shown)} of {len(known):,} clients are shown."
    return Picture(
        "clients",
        "Clients",
        "Perplexity of each client's own test data and of everyone's test data under its model, "
        f"sorted by own data. Lower is better.{few}",
        figure,
        Numbers(("client", "perplexity_local", "perplexity_global"), known),
    )
