"""A finished run in Python: the content of its result.json, and its tables as pandas DataFrames."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fedms.core.formatting import decimal, duration, scaled
from fedms.runs.reading.measures import of_text
from fedms.runs.reading.run import number, read_result, read_rounds

if TYPE_CHECKING:
    import pandas as pd


class Result(dict[str, Any]):
    """The content of result.json, with tables. In a notebook it shows itself.

        result = fedms.run("assistant", "runs/first")
        result["accuracy_local"]
        result.clients.sort_values("accuracy_local").head()

    Attributes:
        folder: the run folder.
    """

    def __init__(self, content: Mapping[str, Any], folder: str | Path) -> None:
        super().__init__(content)
        self.folder = Path(folder)

    @classmethod
    def of(cls, folder: str | Path) -> Result:
        """The result of a finished run.

        Raises:
            FedmsError: the folder is not a finished run, or a file is damaged.
        """
        return cls(read_result(Path(folder)), folder)

    @property
    def rounds(self) -> pd.DataFrame:
        """A row for each line of metrics.jsonl: stage, round, loss, score, bytes, operations, seconds."""
        return _frame(read_rounds(self.folder))

    @property
    def clients(self) -> pd.DataFrame:
        """A row for each client: name, samples, both accuracies, gate weight of the global expert."""
        return _frame(self.get("per_client") or [])

    @property
    def frontier(self) -> pd.DataFrame:
        """A row for each prior with both accuracies; empty for a method without a frontier."""
        return _frame(self.get("frontier") or [])

    def _repr_html_(self) -> str:
        """The headline numbers, clients, frontier, and the way to the report, as a notebook shows them."""
        kind, digits = ("perplexity", 2) if of_text(self) else ("accuracy", 4)
        named = (("own data", "local"), ("worst tenth", "local_worst"), ("everyone's data", "global"))
        numbers = {
            **{
                f"{kind}, {name}" if of_text(self) else name: decimal(number(self, f"{kind}_{of}"), digits)
                for name, of in named
            },
            "gate weight": decimal(number(self, "gate_global_share")),
            "uplink": scaled(number(self, "uplink_bytes"), "B"),
            "time": duration(number(self, "seconds")),
        }
        head = "".join(f"<th>{escape(name)}</th>" for name in numbers)
        cells = "".join(f"<td>{escape(value)}</td>" for value in numbers.values())
        title = escape(f"{self.get('method')}, seed {self.get('seed')}: {self.folder}")
        tables = {"Clients": self.clients, "Frontier": self.frontier}
        folded = "".join(
            f"<details><summary>{name}</summary>"
            f"{table.to_html(index=False, float_format='{:.4f}'.format, max_rows=50)}</details>"
            for name, table in tables.items()
            if len(table)
        )
        shown = f"<p><strong>{title}</strong></p><table><tr>{head}</tr><tr>{cells}</tr></table>{folded}"
        report = self.folder / "report.html"
        return shown + (
            f'<p><a href="{escape(quote(str(report)))}">report</a></p>' if report.exists() else ""
        )


def _frame(records: Any) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(records)
