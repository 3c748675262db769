"""The columns of a comparison's tables: accuracies and costs, or of texts perplexities and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedms.core.formatting import MISSING, decimal, three_figures
from fedms.runs.reading.comparison import Comparison
from fedms.runs.reading.run import number


@dataclass(frozen=True)
class Column:
    """A metric and its heading. With `scale`, only the mean is shown, divided by the scale."""

    title: str
    metric: str
    scale: float | None = None
    terminal: bool = True
    digits: int = 3
    marked: str = ""
    """The metric whose best rows are marked here, where it is another one"""

    @property
    def judged(self) -> str:
        """The metric by which rows are marked in this column."""
        return self.marked or self.metric


_COSTS = (
    Column("gate weight", "gate_global_share"),
    Column("gate weight, everyone's data", "gate_global_share_everyone", terminal=False),
    Column("uplink MB", "uplink_bytes", 1e6),
    Column("downlink MB", "downlink_bytes", 1e6),
    Column("TFLOP", "train_flops", 1e12),
    Column("seconds", "seconds", 1),
    Column("trainable %", "trainable_fraction", 1e-2),
)
COLUMNS = (
    Column("own data", "accuracy_local"),
    Column("worst tenth", "accuracy_local_worst"),
    Column("everyone's data", "accuracy_global"),
    *_COSTS,
)
"""Accuracy on own test data, the same for the worst tenth of the clients, accuracy on everyone's test data;
gate weight of the global expert on own and on everyone's test data; costs."""
OF_TEXT = (
    Column("own perplexity", "perplexity_local", digits=2, marked="nll_local"),
    Column("worst tenth", "perplexity_local_worst", digits=2),
    Column("everyone's perplexity", "perplexity_global", digits=2, marked="nll_global"),
    Column("own token accuracy", "accuracy_local", terminal=False),
    Column("everyone's token accuracy", "accuracy_global", terminal=False),
    *_COSTS,
)
"""The same of texts, by perplexity; rows are told apart by the loss, of which it is the exponential."""


def columns_of(comparison: Comparison) -> tuple[Column, ...]:
    """The columns of this comparison's tables."""
    return OF_TEXT if comparison.measure.lower else COLUMNS


def marks_of(comparison: Comparison) -> str:
    """Explanation of the marks in the tables."""
    best = "lowest" if comparison.measure.lower else "highest"
    return (
        f"Mean ± standard deviation over seeds. Bold: the {best}. "
        "≈: not distinguishable from it (95 %, clients paired)."
    )


def cell_of(row: Mapping[str, Any], column: Column, spread: bool = True) -> str:
    """A row's entry in this column: mean ± standard deviation with its mark, or a scaled mean."""
    mean, std = number(row["mean"], column.metric), number(row["std"], column.metric)
    if mean is None:
        return MISSING
    if column.scale:
        return three_figures(mean / column.scale)
    equal = " ≈" if row["best"].get(column.judged) == "equal" else ""
    digits = column.digits
    return (
        decimal(mean, digits) + (f" ± {decimal(std, digits)}" if spread and std is not None else "") + equal
    )


def best_of(row: Mapping[str, Any], column: Column) -> bool:
    """Whether the row is the best in this column."""
    return bool(row["best"].get(column.judged) == "best")
