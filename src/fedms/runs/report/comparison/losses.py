"""The report of a comparison with `task: text`: cards, tables and pictures in perplexities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from fedms.core.formatting import MISSING, clip, decimal, duration, scaled
from fedms.runs.reading.comparison import Comparison, RowResults
from fedms.runs.reading.measures import LOSS
from fedms.runs.reading.run import number
from fedms.runs.report.comparison.columns import OF_TEXT, best_of, cell_of, marks_of
from fedms.runs.report.comparison.figures import blocks, partition
from fedms.runs.report.comparison.frontier import COLOURS, LINES, MARKERS
from fedms.runs.report.comparison.progress import over_rounds
from fedms.runs.report.drawing import LOCAL, WIDTH, Numbers, Picture, picture_text, style
from fedms.runs.report.html import Strong, card, note, table
from fedms.runs.report.run.losses import PERPLEXITY, has_classes, perplexity_at


def cards(comparison: Comparison) -> Iterable[str]:
    """The headline numbers of the baseline."""
    name = clip(comparison.baseline.name)
    for title, key, meaning, kind in (
        ("own data", "perplexity_local", "Perplexity of a client's own test data under its model", "local"),
        ("everyone's data", "perplexity_global", "Perplexity of everyone's test data", "global"),
        ("worst tenth", "perplexity_local_worst", "The same for the clients with the highest loss", "local"),
    ):
        yield card(
            f"{name}, {title}",
            _spread(comparison.baseline, key),
            f"{meaning}, mean over clients and seeds; lower is better. {_rival(comparison, key)}",
            kind,
        )
    sent = scaled(comparison.baseline.mean("uplink_bytes"), "B")
    yield card(f"{name} sends", sent, "Uplink of all clients and rounds of a run.")


def _rival(comparison: Comparison, key: str) -> str:
    others = [
        (value, row)
        for row in comparison.rows
        if row is not comparison.baseline and (value := row.mean(key)) is not None
    ]
    if not others:
        return ""
    _, best = min(others, key=lambda each: each[0])
    return f"The best of the others: {clip(best.name)}, {_spread(best, key)}."


def _spread(row: RowResults, key: str) -> str:
    mean, spread = row.mean(key), row.spread(key)
    return decimal(mean, 1) + ("" if mean is None or spread is None else f" ± {decimal(spread, 1)}")


def results(comparison: Comparison) -> str:
    """The rows as a table."""
    rows = []
    for row in comparison.rows:
        cells = [(cell_of(row.record, column), best_of(row.record, column)) for column in OF_TEXT]
        rows.append([clip(row.name, 60), *(Strong(text) if best else text for text, best in cells)])
    head = ["method", *(column.title for column in OF_TEXT)]
    meaning = (
        f"{marks_of(comparison)} Perplexities are exp of the mean loss of a token; rows are told apart by "
        "the loss."
    )
    return table(head, rows, kind="rows") + note(meaning)


def differences(comparison: Comparison) -> str:
    """Each row's losses minus the baseline's."""
    rows = []
    for row in comparison.rows:
        if row is comparison.baseline:
            continue
        cells: list[str] = []
        for key in LOSS.keys:
            said = row.versus_baseline(key)
            found, low, high, p = (number(said, part) for part in ("difference", "low", "high", "p"))
            shown = _nats(found)
            between = MISSING if low is None or high is None else f"{_nats(low)} to {_nats(high)}"
            chance = MISSING if p is None else "< 0.001" if p < 0.001 else decimal(p)
            cells += [Strong(shown) if said.get("distinguishable") is True else shown, between, chance]
        rows.append([clip(row.name, 60), *cells])
    head = ["method", "own data", "95 % interval", "p", "everyone's data", "95 % interval", "p"]
    meaning = (
        f"Loss of a method minus that of {clip(comparison.baseline.name)}, in nats a token, over the same "
        "clients and seeds. Below 0 the method is better. Bold: the interval excludes 0."
    )
    return table(head, rows, kind="rows") + note(meaning)


def _nats(value: float | None) -> str:
    return MISSING if value is None else f"{round(value, 3) or 0.0:+.3f}".replace("-", "−")


def runs_table(comparison: Comparison) -> str:
    """Every run."""
    rows = [
        [
            clip(row.name, 60),
            str(run.seed),
            *(
                decimal(number(run.result, f"perplexity_{of}"), 2)
                for of in ("local", "local_worst", "global")
            ),
            *(decimal(number(run.result, key), 4) for key in ("accuracy_local", "accuracy_global")),
            scaled(number(run.result, "uplink_bytes"), "B"),
            duration(number(run.result, "seconds")),
            clip(run.folder, 80) or MISSING,
        ]
        for row in comparison.rows
        for run in row.runs
    ]
    head = ["method", "seed", "own perplexity", "worst tenth", "everyone's perplexity", "own tokens right"]
    return table([*head, "everyone's tokens right", "up", "time", "folder"], rows, kind="rows")


def pictures(comparison: Comparison) -> list[Picture]:
    """All pictures that this comparison has the data for."""
    drawn = [frontier(comparison), _over_rounds(comparison), blocks(comparison)]
    if any(has_classes(run.result) for run in comparison.baseline.runs):
        drawn.append(partition(comparison))
    return [picture for picture in drawn if picture is not None]


def _over_rounds(comparison: Comparison) -> Picture | None:
    drawn = over_rounds(comparison)
    if drawn is None:
        return None
    drawn.figure.supylabel("mean log p of a token (nats)", fontsize=9)
    caption = drawn.caption.replace("Mean accuracy on", "Mean log-probability of a token of")
    return replace(drawn, title="Likelihood over rounds", caption=caption)


def frontier(comparison: Comparison) -> Picture | None:
    """Own perplexity over everyone's for every row, and for every prior of a row with a frontier."""
    known = [
        (row, everyone, own)
        for row in sorted(comparison.rows, key=lambda row: row is not comparison.baseline)
        if (own := perplexity_at(row.record["mean"], LOSS.own)) is not None
        and (everyone := perplexity_at(row.record["mean"], LOSS.everyone)) is not None
    ]
    if not known:
        return None
    numbers: list[list[Any]] = []
    with style("frontier"):
        figure = Figure(figsize=(WIDTH, 4.2 + 0.17 * -(-len(known) // 2)))
        axes = figure.subplots()
        for at, (row, x, y) in enumerate(known):
            is_baseline = row is comparison.baseline
            look: dict[str, Any] = {"color": LOCAL if is_baseline else COLOURS[at % len(COLOURS)]}
            curve = _curve(row)
            if curve:
                line: Any = "-" if is_baseline else LINES[at % len(LINES)]
                steps = zip(*(point[1:] for point in curve), strict=True)
                axes.plot(*steps, linestyle=line, linewidth=2 if is_baseline else 1, **look)
            look["marker"] = "D" if is_baseline else MARKERS[at % len(MARKERS)]
            axes.plot([x], [y], linestyle="none", label=picture_text(row.name, 26), zorder=4, **look)
            numbers.append([row.name, "result", None, x, y])
            numbers += [[row.name, "frontier", *point] for point in curve]
        axes.set(xlabel="everyone's " + PERPLEXITY, ylabel="own perplexity")
        axes.margins(0.08)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7.5)
    return Picture(
        "frontier",
        "Frontier",
        "Down: lower perplexity of own data. To the left: lower perplexity of everyone's data. Curves run "
        "over the prior, or over the constant weight.",
        figure,
        Numbers(("row", "kind", "prior", "perplexity_global", "perplexity_local"), numbers),
    )


def _curve(row: RowResults) -> Sequence[tuple[float, float, float]]:
    """(prior, everyone's, own perplexity), from mean losses."""
    return [
        (number(point, "prior") or 0.0, x, y)
        for point in row.record["frontier"]
        if (x := perplexity_at(point, LOSS.everyone)) is not None
        and (y := perplexity_at(point, LOSS.own)) is not None
    ]
