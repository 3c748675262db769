"""A comparison as a table for the terminal and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedms.core.formatting import MISSING, clip, decimal
from fedms.runs.intervals import FEWEST_PAIRS, RESAMPLES
from fedms.runs.reading.comparison import Comparison
from fedms.runs.reading.measures import Measure
from fedms.runs.report.comparison.columns import best_of, cell_of, columns_of, marks_of
from fedms.runs.report.tables import TERMINAL, fitted

if TYPE_CHECKING:
    from rich.table import Table


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

PAGE = """# Comparison

{table}

{marks}

{meaning} *Gate weight*: mean gate weight of the global expert, on own and on
everyone's test data. Costs are means over seeds. A first stage that several rows share is trained once and
counted in each row.

## Against {baseline}

{differences}

A difference is a row's {figure} minus that of {baseline}, in {unit}, averaged over pairs. A
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


MEANINGS = (
    "*Own data*: accuracy of a client's model on its own test data, mean over clients. *Worst tenth*: the "
    "same for\nthe tenth of the clients with the lowest accuracy. *Everyone's data*: accuracy of the same "
    "model on\neveryone's test data, mean over clients.",
    "*Own perplexity*: exp of the mean loss of a token (-log p, in nats) of a client's model on its own "
    "test data,\nmean loss over clients; lower is better. *Worst tenth*: the same for the tenth of the "
    "clients with the\nhighest loss. *Everyone's perplexity*: the same on everyone's test data.",
)
"""Of accuracies, and of losses."""


def comparison_table(comparison: Comparison, width: int = TERMINAL) -> Table:
    """The rows for the terminal, in the columns that fit."""
    from rich.text import Text

    records = [row.record for row in comparison.rows]
    cells = {"method": [Text(clip(record["name"])) for record in records]}
    for column in (column for column in columns_of(comparison) if column.terminal):
        # only the two accuracies show their spread, so that a line fits
        spread = column.judged in comparison.measure.keys
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
        marks=marks_of(comparison).replace("Bold", "**Bold**"),
        meaning=MEANINGS[comparison.measure.lower],
        figure="loss" if comparison.measure.lower else "accuracy",
        unit="nats" if comparison.measure.lower else "points (hundredths)",
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
    lines, columns = [], columns_of(comparison)
    for row in (each.record for each in comparison.rows):
        cells = [(cell_of(row, column), best_of(row, column)) for column in columns]
        lines.append([_name(row), *(f"**{text}**" if best else text for text, best in cells)])
    return _table(["method", *(column.title for column in columns)], lines)


def differences_markdown(comparison: Comparison) -> str:
    """Each row minus the baseline, in points or of texts in nats, as a Markdown table."""
    lines, measure = [], comparison.measure
    for row in (each.record for each in comparison.rows):
        if against := row.get("versus_baseline"):
            lines.append(
                [_name(row), *(cell for key in measure.keys for cell in _difference(against[key], measure))]
            )
    return (
        _table(["method", "own data", "p", "everyone's data", "p"], lines)
        if lines
        else "There is no other row."
    )


def _difference(found: Mapping[str, Any], measure: Measure) -> list[str]:
    if found["difference"] is None:
        return [MISSING, MISSING]

    def shown(value: float) -> str:
        return f"{value:+.3f}" if measure.lower else f"{100 * value:+.1f}"

    text = shown(found["difference"])
    if found["low"] is None:
        return [text, MISSING]
    text += f" [{shown(found['low'])}, {shown(found['high'])}]"
    return [
        f"**{text}**" if found["distinguishable"] else text,
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
