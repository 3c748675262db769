"""What clients' models answer for their own test samples: by class, confused, where experts disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from fedms.core.formatting import clip, decimal, percent
from fedms.runs.reading.predictions import Predicted
from fedms.runs.reading.run import Run
from fedms.runs.report.drawing import (
    GLOBAL,
    LOCAL,
    WIDTH,
    Hover,
    Numbers,
    Picture,
    cell,
    heat_map,
    name_ticks,
    picture_text,
    style,
)
from fedms.runs.report.html import note, section, table

MOST_BARS = 25
"""Most classes, or pairs of classes, in a picture."""
MOST_CLASSES = 20
"""Most classes in a confusion matrix; of more, the pairs that are confused most are shown."""
MOST_SAMPLES = 12
"""Samples in the table of disagreement."""


def classes(run: Run) -> Picture | None:
    """Share of right answers for each class, over all clients."""
    held = Counter(each.label for each in run.predictions)
    right = Counter(each.label for each in run.predictions if each.predicted == each.label)
    if not held:
        return None
    shares = sorted(((right[name] / count, name) for name, count in held.items()), reverse=True)
    shown = shares[-MOST_BARS:]
    with style("classes"):
        figure, axes = _bars([share for share, _ in shown], [name for _, name in shown], LOCAL)
        axes.set(xlabel="right answers (share of the class's samples)", xlim=(0, 1))
    some = f" The {len(shown)} lowest of {len(shares):,} classes." if len(shown) < len(shares) else ""
    return Picture(
        "classes",
        "Classes",
        "Right answers for the samples of each class, over all clients' own test data, each with the "
        f"client's own model.{some}",
        figure,
        Numbers(
            ("class", "samples", "right"), [[name, held[name], right[name]] for _, name in reversed(shares)]
        ),
        hovers=[
            Hover(
                axes,
                0,
                at - 0.5,
                f"{clip(name)}: {right[name]:,} of {held[name]:,} right ({percent(share)})",
                1,
                1,
            )
            for at, (share, name) in enumerate(shown)
        ],
    )


def confusion(run: Run) -> Picture | None:
    """The confusion matrix over all clients; of many classes, the pairs that are confused most."""
    pairs = Counter((each.label, each.predicted) for each in run.predictions)
    wrong = [(count, pair) for pair, count in pairs.items() if pair[0] != pair[1]]
    if not wrong:
        return None
    wrong.sort(key=lambda each: (-each[0], each[1]))
    numbers = Numbers(("class", "predicted", "samples"), [[*pair, pairs[pair]] for pair in sorted(pairs)])
    named = sorted({name for pair in pairs for name in pair})
    if len(named) <= MOST_CLASSES:
        return _matrix(named, pairs, numbers)
    shown = wrong[:MOST_BARS][::-1]
    held = Counter(each.label for each in run.predictions)
    texts = [f"{clip(label, 16)} → {clip(predicted, 16)}" for _, (label, predicted) in shown]
    with style("confusion"):
        figure, axes = _bars([count for count, _ in shown], texts, GLOBAL)
        axes.set_xlabel("samples (count)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    top = shown[-1][0]
    return Picture(
        "confusion",
        "Confusion",
        f"The {len(shown)} of {len(wrong):,} pairs of classes that are confused most: class → wrong answer, "
        "over all clients' own test data. figures/confusion.csv has every pair.",
        figure,
        numbers,
        hovers=[
            Hover(axes, 0, at - 0.5, f"{text}: {count:,} of {held[pair[0]]:,} samples", top, 1)
            for at, (text, (count, pair)) in enumerate(zip(texts, shown, strict=True))
        ],
    )


def _matrix(named: Sequence[str], pairs: Counter[tuple[str, str]], numbers: Numbers) -> Picture:
    counts = [[pairs[label, predicted] for predicted in named] for label in named]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    with style("confusion"):
        figure = Figure(figsize=(WIDTH, max(2.6, 1.4 + 0.2 * len(named))))
        axes = figure.subplots()
        heat_map(axes, shares, fullest=0.7, vmin=0, vmax=1, interpolation="none")
        for line, row in enumerate(counts):
            for at, count in enumerate(row):
                if count:
                    axes.text(at, line, f"{count:,}", ha="center", va="center", fontsize=6.5)
        name_ticks(axes.set_xticks, named, MOST_CLASSES, rotation=90)
        name_ticks(axes.set_yticks, named, MOST_CLASSES)
        axes.set(xlabel="answer", ylabel="class")
    hovers = [
        cell(
            axes,
            at,
            line,
            f"{clip(label)} → {clip(said)}: {counts[line][at]:,} of {sum(counts[line]):,} samples",
        )
        for line, label in enumerate(named)
        for at, said in enumerate(named)
        if counts[line][at]
    ]
    caption = (
        "Samples by class (line) and answer (column), over all clients' own test data, each with the "
        "client's own model. The shade is the share of the line."
    )
    return Picture("confusion", "Confusion", caption, figure, numbers, hovers=hovers)


def _bars(values: Sequence[float], names: Sequence[str], colour: str) -> tuple[Figure, Any]:
    """Named bars, from the bottom up."""
    figure = Figure(figsize=(WIDTH, max(2.4, 0.9 + 0.19 * len(values))))
    axes = figure.subplots()
    axes.barh(range(len(values)), values, color=colour, height=0.7)
    axes.set_yticks(range(len(values)), [picture_text(name, 36) for name in names], fontsize=7)
    axes.set_ylim(-0.7, len(values) - 0.3)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def disagreement(run: Run) -> str:
    """A section with the samples where both experts differ most; empty if no two experts are mixed."""
    known = [each for each in run.predictions if each.disagreement is not None]
    if not known:
        return ""
    ordered = sorted(known, key=lambda each: -(each.disagreement or 0.0))[:MOST_SAMPLES]
    rows = [
        [
            clip(each.client, 40),
            each.row,
            *(clip(str(name), 30) for name in (each.label, each.predicted)),
            *(clip(str(name), 30) for name in (each.global_predicted, each.local_predicted)),
            percent(None if each.local_weight is None else 1 - each.local_weight),
            decimal(each.disagreement),
        ]
        for each in ordered
    ]
    head = [
        "client",
        "row",
        "class",
        "answer",
        "global expert",
        "local expert",
        "gate weight",
        "disagreement",
    ]
    return section(
        "Where both experts disagree", note(_tally(known)), table(head, rows, kind="rows"), note(MEANING)
    )


MEANING = (
    "Test samples of all clients, the largest disagreement first. Row: the sample's place in the data set. "
    "Gate weight: that of the global expert; the rest is that of the local expert. Disagreement: total "
    "variation between the probabilities of both experts, from 0 to 1. The samples themselves are not here."
)


def _tally(known: Sequence[Predicted]) -> str:
    """How often both experts answer differently, and who is right then."""
    apart = [each for each in known if each.global_predicted != each.local_predicted]
    if not apart:
        return f"Both experts give the same answer for all {len(known):,} samples."
    right = {
        "mixture": sum(each.predicted == each.label for each in apart),
        "global expert": sum(each.global_predicted == each.label for each in apart),
        "local expert": sum(each.local_predicted == each.label for each in apart),
    }
    shares = ", ".join(f"the {name} for {percent(count / len(apart))}" for name, count in right.items())
    return (
        f"The experts answer differently for {len(apart):,} of {len(known):,} samples. There, right "
        f"answers come from {shares}."
    )
