"""A comparison for a paper: the values of each seed as CSV, and the table as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedms.core.formatting import MISSING
from fedms.runs.reading.comparison import Comparison
from fedms.runs.reading.run import number
from fedms.runs.report.comparison.columns import best_of, cell_of, columns_of
from fedms.runs.report.comparison.tables import comparison_markdown

LATEX = str.maketrans(
    {
        **{each: f"\\{each}" for each in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "≈": r"$\approx$",
        MISSING: "--",
    }
)


def comparison_csv(comparison: Comparison) -> str:
    """One line for each run: row, seed, and its metrics as numbers; empty where a value is not known."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    shown = [column.metric for column in columns_of(comparison)]
    base = ["perplexity_base", *comparison.measure.keys] if comparison.measure.lower else ["accuracy_base"]
    metrics = [*shown, *base, "peak_memory_bytes"]
    rows.writerow(["row", "method", "seed", *metrics])
    for row in comparison.rows:
        for run in row.runs:
            rows.writerow([row.name, row.record["method"], run.seed, *_values(run.result, metrics)])
    return text.getvalue()


def comparison_latex(comparison: Comparison) -> str:
    """The table of comparison.md for the package `booktabs`, with the same marks."""
    columns = columns_of(comparison)
    head = ["method", *(column.title for column in columns)]
    best = "lowest" if comparison.measure.lower else "highest"
    lines = [
        rf"% \usepackage{{booktabs}}; bold: the {best}; \approx: not distinguishable from it (95 %)",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        _line(map(latex, head)),
        r"\midrule",
    ]
    for row in comparison.rows:
        cells = [latex(row.name)]
        for column in columns:
            text = latex(cell_of(row.record, column))
            cells.append(rf"\textbf{{{text}}}" if best_of(row.record, column) else text)
        lines.append(_line(cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex(text: str) -> str:
    """The text with LaTeX's own characters escaped."""
    return text.translate(LATEX)


def _line(cells: Any) -> str:
    return " & ".join(cells) + r" \\"


def _values(result: Mapping[str, Any], metrics: Sequence[str]) -> list[Any]:
    found = [number(result, metric) for metric in metrics]
    return ["" if value is None else value for value in found]


WRITERS: dict[str, Callable[[Comparison], str]] = {
    ".md": comparison_markdown,
    ".csv": comparison_csv,
    ".tex": comparison_latex,
}
"""What writes a comparison, by the suffix of its file."""
