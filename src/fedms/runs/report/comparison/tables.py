"""A comparison as a table for the terminal and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedms.core.formatting import MISSING, clip, decimal, three_figures
from fedms.runs.intervals import FEWEST_PAIRS, RESAMPLES
from fedms.runs.reading.comparison import ACCURACIES, Comparison
from fedms.runs.reading.run import number
from fedms.runs.report.tables import TERMINAL, fitted

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A metric and its heading. With `scale`, only the mean is shown, divided by the scale."""

    title: str
    metric: str
    scale: float | None = None
    terminal: bool = True


COLUMNS = (
    Column("own data", "accuracy_local"),
    Column("worst tenth", "accuracy_local_worst"),
    Column("everyone's data", "accuracy_global"),
    Column("gate weight", "gate_global_share"),
    Column("gate weight, everyone's data", "gate_global_share_everyone", terminal=False),
    Column("uplink MB", "uplink_bytes", 1e6),
    Column("downlink MB", "downlink_bytes", 1e6),
    Column("TFLOP", "train_flops", 1e12),
    Column("seconds", "seconds", 1),
    Column("trainable %", "trainable_fraction", 1e-2),
)
"""Accuracy on own test data, the same for the worst tenth of the clients, accuracy on everyone's test data;
gate weight of the global expert on own and on everyone's test data; costs."""

DROPPED = (
    "trainable %",
    "downlink MB",
    "seconds",
    "TFLOP",
    "uplink MB",
    "gate weight",
    "worst tenth",
)
"""Columns that a narrow terminal does without, the first ones first; comparison.md has them all."""

MARKS = (
    "Mean ± standard deviation over seeds. Bold: the highest. "
    "≈: not distinguishable from it (95 %, clients paired)."
)
"""Explanation of the marks in both tables."""

PAGE = """# Comparison

{table}

{marks}

*Own data*: accuracy of a client's model on its own test data, mean over clients. *Worst tenth*: the same for
the tenth of the clients with the lowest accuracy. *Everyone's data*: accuracy of the same model on
everyone's test data, mean over clients. *Gate weight*: mean gate weight of the global expert, on own and on
everyone's test data. Costs are means over seeds. A first stage that several rows share is trained once and
counted in each row.

## Against {baseline}

{differences}

A difference is a row's accuracy minus that of {baseline}, in points (hundredths), averaged over pairs. A
pair is one client with one seed. Intervals cover 95 %, by a percentile bootstrap in two levels
({resamples:,} resamples): seeds are drawn with replacement, then clients within each seed, because the
clients of a seed share its partition, global model and test data. With few seeds, the interval reflects only
the variation between these seeds. **Bold**: the interval excludes 0. With fewer than {fewest} pairs, or
without any variation, there is no interval. p is from Wilcoxon's signed-rank test, which assumes independent
pairs; no mark depends on it. There is no correction for the number of rows.

## Tuning

{tuning}

## Repeat

    fedms compare {folder}/comparison.yaml --out {folder}

The file holds the complete configuration. Seeds: {seeds}. fedms {version}, commit {commit}.
"""


def comparison_table(comparison: Comparison, width: int = TERMINAL) -> Table:
    """The rows for the terminal, in the columns that fit."""
    from rich.text import Text

    records = [row.record for row in comparison.rows]
    cells = {"method": [Text(clip(record["name"])) for record in records]}
    for column in (column for column in COLUMNS if column.terminal):
        # only the two accuracies show their spread, so that a line fits
        spread = column.metric in ACCURACIES
        cells[column.title] = [
            Text(cell_of(record, column, spread), style="bold" if best_of(record, column) else "")
            for record in records
        ]
    return fitted(cells, DROPPED, width, "comparison.md has")


def comparison_markdown(comparison: Comparison) -> str:
    """The page: results, differences, tuning, and the command that repeats it."""
    environment = comparison.environment
    return PAGE.format(
        table=headline_markdown(comparison),
        marks=MARKS.replace("Bold", "**Bold**"),
        baseline=comparison.baseline.name,
        differences=differences_markdown(comparison),
        resamples=RESAMPLES,
        fewest=FEWEST_PAIRS,
        tuning=tuning_markdown(comparison),
        folder=comparison.folder,
        seeds=", ".join(map(str, comparison.seeds)),
        version=(environment.get("versions") or {}).get("fedms") or MISSING,
        commit=environment.get("git_commit") or MISSING,
    )


def headline_markdown(comparison: Comparison) -> str:
    """The rows as a Markdown table."""
    lines = []
    for row in (each.record for each in comparison.rows):
        cells = [(cell_of(row, column), best_of(row, column)) for column in COLUMNS]
        lines.append([_name(row), *(f"**{text}**" if best else text for text, best in cells)])
    return _table(["method", *(column.title for column in COLUMNS)], lines)


def cell_of(row: Mapping[str, Any], column: Column, spread: bool = True) -> str:
    """A row's entry in this column: mean ± standard deviation with its mark, or a scaled mean."""
    mean, std = number(row["mean"], column.metric), number(row["std"], column.metric)
    if mean is None:
        return MISSING
    if column.scale:
        return three_figures(mean / column.scale)
    equal = " ≈" if row["best"].get(column.metric) == "equal" else ""
    return decimal(mean) + (f" ± {decimal(std)}" if spread and std is not None else "") + equal


def best_of(row: Mapping[str, Any], column: Column) -> bool:
    """Whether the row is the best in this column."""
    return bool(row["best"].get(column.metric) == "best")


def differences_markdown(comparison: Comparison) -> str:
    """Each row minus the baseline, in points, as a Markdown table."""
    lines = []
    for row in (each.record for each in comparison.rows):
        if against := row.get("versus_baseline"):
            lines.append([_name(row), *(cell for key in ACCURACIES for cell in _difference(against[key]))])
    return (
        _table(["method", "own data", "p", "everyone's data", "p"], lines)
        if lines
        else "There is no other row."
    )


def _difference(found: Mapping[str, Any]) -> list[str]:
    if found["difference"] is None:
        return [MISSING, MISSING]
    points = f"{100 * found['difference']:+.1f}"
    if found["low"] is None:
        return [points, MISSING]
    points += f" [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    return [
        f"**{points}**" if found["distinguishable"] else points,
        MISSING if found["p"] is None else f"{found['p']:.2g}",
    ]


def tuning_markdown(comparison: Comparison) -> str:
    """The grid, and each row's scores on validation data, with the chosen keys in bold."""
    tuning = comparison.tuning
    if not tuning:
        return "Nothing was tuned: every row has the config's settings."
    grid = "; ".join(f"`{key}` of {', '.join(map(str, values))}" for key, values in tuning["grid"].items())
    text = (
        f"Each row's best by `{tuning['criterion']}` on validation data "
        f"(seed {tuning['seed']}; test data is not used): {grid}.\n\n"
    )
    return text + _table(
        ["method", "validation, chosen in bold"],
        [[_cut(name), _tried(row)] for name, row in tuning["rows"].items()],
    )


def _tried(row: Mapping[str, Any]) -> str:
    cells = [
        (f"{_keys(each['keys'])}: {decimal(each['score'], 4)}", each["keys"] == row["chosen"])
        for each in row["candidates"]
    ]
    return "; ".join(f"**{text}**" if chosen else text for text, chosen in cells)


def _cut(name: str) -> str:
    return clip(name, 64).replace("|", "\\|")


def _name(row: Mapping[str, Any]) -> str:
    """A row's name, and for a variant its keys."""
    keys = {"method": row["method"]} | row["overrides"] if row["name"] != row["method"] else {}
    return _cut(row["name"]) + (f" ({_keys(keys)})" if keys else "")


def _keys(keys: Mapping[str, Any]) -> str:
    return clip(", ".join(f"{key} {value}" for key, value in keys.items()), 120).replace("|", "\\|")


def _table(titles: list[str], lines: list[list[str]]) -> str:
    rows = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    return "\n".join([*rows, *("| " + " | ".join(line) + " |" for line in lines)])
