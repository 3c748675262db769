"""Results, methods and partitions as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedms.core.formatting import MISSING, clip, decimal, percent, plural, three_figures, whole
from fedms.runs.reading.measures import of_text
from fedms.runs.reading.run import number

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

COLUMNS = (
    "method",
    "own data",
    "worst tenth",
    "everyone's data",
    "gate weight",
    "uplink MB",
    "TFLOP",
    "seconds",
)
"""Accuracy on own test data, the same for the worst tenth of the clients, accuracy on everyone's test data,
mean gate weight of the global expert on own test data, bytes sent by clients, training operations, wall
time."""

OF_TEXT = (
    "method",
    "own perplexity",
    "worst tenth",
    "everyone's perplexity",
    *COLUMNS[4:],
)
"""The same of runs with `task: text`, whose figures are perplexities: lower is better."""

DROPPED = ("seconds", "TFLOP", "gate weight", "uplink MB", "worst tenth")
"""Columns that a narrow terminal does without, the first ones first."""
TERMINAL = 80
"""Characters per line, unless a terminal says otherwise."""

SHADES = " ░▒▓█"
MOST_CLIENTS = 50
"""Most clients in the table of a partition."""


def result_rows(results: Sequence[Mapping[str, Any]], folders: Sequence[str] = ()) -> list[list[str]]:
    """The cells under `COLUMNS`, or under `OF_TEXT` if all runs are of texts.

    A method that occurs more than once is shown with its seed; the same method and seed with the folder.
    """
    names = [clip(str(result.get("method", MISSING))) for result in results]
    seeds = [str(result.get("seed", MISSING)) for result in results]
    for own in (seeds, folders):
        times = Counter(names)
        if own:
            word = "seed " if own is seeds else ""
            names = [
                f"{name} ({word}{more})" if times[name] > 1 else name
                for name, more in zip(names, own, strict=True)
            ]
    losses = bool(results) and all(map(of_text, results))
    return [_row(name, result, losses) for name, result in zip(names, results, strict=True)]


def result_table(
    results: Sequence[Mapping[str, Any]], folders: Sequence[str] = (), width: int = TERMINAL
) -> Table:
    """Results for the terminal, one per line; `folders` tell runs apart that are alike."""
    from rich.text import Text

    rows = result_rows(results, folders)
    columns = OF_TEXT if results and all(map(of_text, results)) else COLUMNS
    cells = {
        column: [Text(cell) for cell in column_cells]
        for column, *column_cells in zip(columns, *rows, strict=True)
    }
    return fitted(cells, DROPPED, width, "result.json has")


def fitted(
    columns: Mapping[str, Sequence[Text]], droppable: Sequence[str], width: int, elsewhere: str
) -> Table:
    """A table for the terminal whose words are whole: columns are left out, in this order, until it fits.

    Args:
        columns: headings and cells. The first column holds names, which may wrap at blanks, and stays.
        elsewhere: what has the columns that are left out, and `has` or `have`.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    shown, missing = dict(columns), list[str]()
    for each in ("", *droppable):
        if shown.pop(each, None) is not None:
            missing.append(each)
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for heading, cells in shown.items():
            head = heading.replace(" ", "\n")  # one word a line, so that more columns fit
            if table.columns:
                widest = max(cell_len(line) for line in [*head.split("\n"), *map(str, cells)])
                table.add_column(head, justify="right", no_wrap=True, width=widest)
            else:
                table.add_column(head)
        for row in zip(*shown.values(), strict=True):
            table.add_row(*row)
        if Console(width=1000).measure(table).minimum <= width:
            break
    if missing:
        table.caption = f"{elsewhere} {', '.join(missing)}"
        table.caption_justify = "left"
    return table


def methods_table(methods: Sequence[tuple[str, str, str]]) -> Table:
    """Name, summary and paper of each method, for the terminal. Only the summary wraps."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True, style="bold")
    table.add_column("what it does")
    table.add_column("paper", no_wrap=True)
    for cells in methods:
        table.add_row(*map(Text, cells))
    return table


def partition_table(partition: Mapping[str, Any], width: int = 100) -> Table:
    """Samples of each client, one client per line, with a strip of shades for its classes.

    Args:
        partition: `classes` and `clients` (names), `counts` (one row per client, one number per class), and
            maybe `splits` (train, validation and test samples of each client).
        width: most characters per line.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    classes, clients, counts = (
        partition["classes"],
        partition["clients"][:MOST_CLIENTS],
        partition["counts"][:MOST_CLIENTS],
    )
    columns = {
        "client": [clip(str(client), 16) for client in clients],
        "train+val": [whole(sum(row)) for row in counts],
        "train/val/test": [
            "/".join(str(part) for part in split) for split in (partition.get("splits") or [])[:MOST_CLIENTS]
        ],
        "held": [str(sum(1 for count in row if count)) for row in counts],
        "most of": [_most(classes, row) for row in counts],
    }
    columns = {title: cells for title, cells in columns.items() if cells}
    more = (
        f"… {len(partition['clients']) - MOST_CLIENTS:,} more"
        if len(partition["clients"]) > MOST_CLIENTS
        else ""
    )
    room = width - len(more) - sum(3 + max(map(len, (title, *cells))) for title, cells in columns.items())
    if room < min(len(classes), 24) and "most of" in columns:  # the strip shows this too
        room += 3 + max(map(len, ("most of", *columns.pop("most of"))))
    per_mark = -(-len(classes) // max(16, room))
    columns["classes" if per_mark == 1 else f"{per_mark} classes a mark"] = [
        strip(row, per_mark) for row in counts
    ]

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in columns:
        table.add_column(
            title,
            justify="right" if title in ("train+val", "train/val/test", "held") else "left",
            no_wrap=True,
        )
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    if more:
        table.add_row(Text(more))
    return table


def strip(row: Sequence[int], per_mark: int = 1) -> str:
    """A client's counts as shades. The largest is solid, and even a single sample is visible."""
    marks = [sum(row[start : start + per_mark]) for start in range(0, len(row), per_mark)]
    top = max(marks, default=0)
    # the square root keeps a class with few samples apart from a class with none
    return "".join(
        SHADES[0 if not mark else max(1, round((mark / top) ** 0.5 * (len(SHADES) - 1)))] for mark in marks
    )


def partition_summary(partition: Mapping[str, Any]) -> str:
    """A partition in one line."""
    counts = partition["counts"]
    sizes = sorted(sum(row) for row in counts)
    held = sorted(sum(1 for count in row if count) for row in counts)
    line = f"{plural(len(sizes), 'client')}, {plural(len(partition['classes']), 'class')}"
    line += f", {plural(sum(sizes), 'train and validation sample')}"
    if sizes:
        line += f"; a client holds {_range(sizes)} of them, of {_range(held)} classes"
    return line


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def _row(name: str, result: Mapping[str, Any], losses: bool) -> list[str]:
    uplink, flops = number(result, "uplink_bytes"), number(result, "train_flops")
    kind, digits = ("perplexity", 2) if losses else ("accuracy", 4)
    return [
        name,
        *(decimal(number(result, f"{kind}_{of}"), digits) for of in ("local", "local_worst", "global")),
        decimal(number(result, "gate_global_share"), 3),
        MISSING if uplink is None else three_figures(uplink / 1e6),
        MISSING if flops is None else three_figures(flops / 1e12),
        decimal(number(result, "seconds"), 1),
    ]


def _most(classes: Sequence[Any], row: Sequence[int]) -> str:
    if not any(row):
        return MISSING
    top = max(range(len(row)), key=row.__getitem__)
    return f"{percent(row[top] / sum(row), 0)} {clip(str(classes[top]), 14)}"
