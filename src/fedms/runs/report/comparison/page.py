"""The report of a comparison: one HTML file without network or script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedms.core.formatting import (
    MISSING,
    clip,
    decimal,
    duration,
    percent,
    plural,
    points,
    scaled,
    three_figures,
)
from fedms.runs.reading.comparison import Comparison, RowResults, SeedRun, read_comparison, records
from fedms.runs.reading.run import RESULT, number
from fedms.runs.report.comparison import losses
from fedms.runs.report.comparison.figures import pictures
from fedms.runs.report.comparison.verdict import verdict
from fedms.runs.report.drawing import Picture, save_pictures
from fedms.runs.report.html import (
    Link,
    Strong,
    as_yaml,
    banner,
    card,
    cards,
    environment_rows,
    fact,
    folded,
    frame,
    gallery,
    note,
    section,
    statement,
    subject,
    table,
    write_page,
)
from fedms.runs.report.words import command, ending

HEADLINE = ("accuracy_local", "accuracy_global")
FILES = ("comparison.csv", "comparison.md", "comparison.tex", "comparison.json")
NO_BREAK = "\N{NO-BREAK SPACE}"


def write_comparison_report(folder: Path, comparison: Comparison | None = None) -> Path:
    """Write report.html and figures/ (each picture as PNG, SVG and CSV) into a comparison's folder.

    Args:
        comparison: what is there of one that is not finished; default: the folder's, which is.

    Returns:
            The report's path.

        Raises:
            FedmsError: the folder is not a finished comparison, or a file of it is damaged.
    """
    comparison = comparison or read_comparison(folder)
    drawn = losses.pictures(comparison) if comparison.measure.lower else pictures(comparison)
    save_pictures(drawn, folder / "figures")
    return write_page(folder / "report.html", page(comparison, drawn))


def page(comparison: Comparison, drawn: Sequence[Picture]) -> str:
    """The HTML of a comparison with these pictures."""
    baseline, others = comparison.baseline, len(comparison.rows) - 1
    name = clip(baseline.name)
    seeds = ", ".join(map(str, comparison.seeds)) or MISSING
    spent = sum(number(run.result, "seconds") or 0.0 for row in comparison.rows for run in row.runs)
    lower = comparison.measure.lower
    seeds = f"{'seed' if len(comparison.seeds) == 1 else 'seeds'} {seeds}"
    size = f"{plural(others + 1, 'method')}, {seeds}, {duration(spent)} in all"
    return frame(
        f"{name} compared – fedms",
        f"{name} against {plural(others, 'other')}" if others else name,
        f"{subject(comparison.config)}: {size}.",
        [
            banner(comparison.unfinished) if comparison.unfinished else statement(verdict(comparison)),
            cards(losses.cards(comparison) if lower else _cards(comparison)),
            section("Results", (losses.results if lower else _results)(comparison)),
            section("Against " + name, (losses.differences if lower else _differences)(comparison))
            if others
            else "",
            section("Pictures", gallery(drawn) if drawn else note("This comparison has nothing to draw.")),
            section("What was run", *_what_was_run(comparison)),
            *ending(comparison.folder, FILES, _next(comparison)),
            folded("Configuration, with every default", as_yaml(comparison.config)),
        ],
    )


def _cards(comparison: Comparison) -> Iterable[str]:
    baseline = comparison.baseline
    name = clip(baseline.name)
    yield card(
        f"{name}, own data",
        _share(baseline, "accuracy_local"),
        "Accuracy of a client's model on its own test data, mean over clients and seeds. "
        f"{_best(comparison, 'accuracy_local')}",
        "local",
    )
    yield card(
        f"{name}, everyone's data",
        _share(baseline, "accuracy_global"),
        f"Accuracy of a client's model on everyone's test data. {_best(comparison, 'accuracy_global')}",
        "global",
    )
    rival = _best(comparison, "accuracy_local_worst")
    worst = f"The same for the tenth of the clients with the lowest accuracy. {rival}"
    yield card(f"{name}, worst tenth", _share(baseline, "accuracy_local_worst"), worst, "local")
    down, flops = scaled(baseline.mean("downlink_bytes"), "B"), scaled(baseline.mean("train_flops"), "FLOP")
    meaning = f"Uplink of all clients and rounds of a run. Downlink {down}; compute {flops}."
    yield card(f"{name} sends", scaled(baseline.mean("uplink_bytes"), "B"), meaning)


def _best(comparison: Comparison, metric: str) -> str:
    others = [
        row for row in comparison.rows if row is not comparison.baseline and row.mean(metric) is not None
    ]
    if not others:
        return ""
    best = max(others, key=lambda row: row.mean(metric) or 0.0)
    return f"The best of the others: {clip(best.name)}, {_share(best, metric).replace(' ', NO_BREAK)}."


def _results(comparison: Comparison) -> str:
    head = [
        "method",
        "own data",
        "worst tenth",
        "everyone's data",
        "gate weight of the global expert",
        "up",
        "down",
        "compute",
        "time",
        "trained",
    ]
    rows = [
        [
            clip(row.name, 60),
            _standing(row, "accuracy_local"),
            _share(row, "accuracy_local_worst"),
            _standing(row, "accuracy_global"),
            percent(row.mean("gate_global_share")),
            scaled(row.mean("uplink_bytes"), "B"),
            scaled(row.mean("downlink_bytes"), "B"),
            _teraflop(row.mean("train_flops")),
            duration(row.mean("seconds")),
            percent(row.mean("trainable_fraction"), 2),
        ]
        for row in comparison.rows
    ]
    meaning = (
        "Mean ± standard deviation over seeds. Own data: accuracy of a client's model on its own test data, "
        "mean over clients. Everyone's data: accuracy of the same model on everyone's test data. Bold: the "
        "highest. ≈: not distinguishable from the highest. Up, down and compute: sums over all clients and "
        "rounds of a run. Trained: share of the model's parameters that a client trains."
    )
    return table(head, rows, kind="rows") + note(meaning)


def _differences(comparison: Comparison) -> str:
    rows = [
        [
            clip(row.name, 60),
            *(cell for metric in HEADLINE for cell in _difference(row.versus_baseline(metric))),
        ]
        for row in comparison.rows
        if row is not comparison.baseline
    ]
    head = ["method", "own data", "95 % interval", "p", "everyone's data", "95 % interval", "p"]
    meaning = (
        f"Accuracy of a method minus that of {clip(comparison.baseline.name)}, in points, over the same "
        "clients and seeds. Bold: the interval excludes 0."
    )
    return table(head, rows, kind="rows") + note(meaning)


def _difference(versus: Mapping[str, Any]) -> list[str]:
    difference, low, high, p = (number(versus, key) for key in ("difference", "low", "high", "p"))
    shown = points(difference)
    between = MISSING if low is None or high is None else f"{points(low)} to {points(high)}"
    chance = MISSING if p is None else "< 0.001" if p < 0.001 else decimal(p)
    return [Strong(shown) if versus.get("distinguishable") is True else shown, between, chance]


def _standing(row: RowResults, metric: str) -> str:
    shown = _share(row, metric)
    return {"best": Strong(shown), "equal": f"≈ {shown}"}.get(row.standing(metric), shown)


def _share(row: RowResults, metric: str) -> str:
    """`81.2 ± 0.4 %`."""
    mean, spread = row.mean(metric), row.spread(metric)
    return percent(mean) if mean is None or spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f} %"


def _teraflop(value: float | None) -> str:
    """The same unit in every row."""
    return MISSING if value is None else f"{three_figures(value / 1e12)} TFLOP"


def _what_was_run(comparison: Comparison) -> Iterable[str]:
    rows = [
        [
            clip(row.name, 60),
            _text(row, "summary"),
            _text(row, "paper"),
            fact(row.record.get("overrides")) or MISSING,
            fact(row.record.get("tuned")) or MISSING,
        ]
        for row in comparison.rows
    ]
    yield table(["method", "what it does", "paper", "set", "tuned"], rows, kind="facts")
    environment = environment_rows(comparison.environment)
    yield table([], environment, kind="facts") if environment else ""
    runs = [
        [
            clip(row.name, 60),
            str(run.seed),
            decimal(number(run.result, "accuracy_local"), 4),
            decimal(number(run.result, "accuracy_local_worst"), 4),
            decimal(number(run.result, "accuracy_global"), 4),
            scaled(number(run.result, "uplink_bytes"), "B"),
            _teraflop(number(run.result, "train_flops")),
            duration(number(run.result, "seconds")),
            scaled(number(run.result, "peak_memory_bytes"), "B"),
            _folder(comparison, run),
        ]
        for row in comparison.rows
        for run in row.runs
    ]
    head = [
        "method",
        "seed",
        "own data",
        "worst tenth",
        "everyone's data",
        "up",
        "compute",
        "time",
        "peak memory",
        "folder",
    ]
    of_runs = losses.runs_table(comparison) if comparison.measure.lower else table(head, runs, kind="rows")
    yield folded(f"Every run ({len(runs):,})", of_runs)
    if tuning := comparison.tuning:
        yield folded("Tuning on validation data: candidates and choices", as_yaml(tuning))


def _folder(comparison: Comparison, run: SeedRun) -> str:
    """A run's folder, which leads to its numbers where they are."""
    name, there = clip(run.folder, 80) or MISSING, f"{run.folder}/{RESULT}"
    return Link(name, there) if (comparison.folder / there).is_file() else name


def _next(comparison: Comparison) -> Iterable[tuple[str, str]]:
    """What to do next, and the command that does it."""
    folder = comparison.folder
    run = next(iter(comparison.baseline.runs), None)
    if run is not None and (folder / run.folder / RESULT).is_file():
        at = folder / run.folder
        yield "look at one run by itself: it gets a report of its own", command("fedms", "report", at)
        held = [str(client["name"]) for client in records(run.result.get("per_client")) if client.get("name")]
        if held:
            of, new = (at, "--client", held[0]), ("--input", "new.csv", "--output", "answers.csv")
            yield "predict with one client's model", command("fedms", "predict", *of, *new)
            if number(run.result, "trainable_parameters"):
                exported = command("fedms", "export", *of, "--to", f"{held[0]}-model")
                yield "export one client's experts as adapters", exported
    if comparison.unfinished:
        at = folder / "comparison.yaml"
        yield "go on, with the runs that are finished", command("fedms", "compare", at, "--out", folder)
        return
    yield "print the table for a paper", command("fedms", "report", folder, "--format", "tex")


def _text(row: RowResults, key: str) -> str:
    value = row.record.get(key)
    return str(value) if value else MISSING
