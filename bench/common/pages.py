"""Where the documentation pages are, and how a script writes a table into them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PERFORMANCE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "docs" / "results.md"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: first column aligned left, all others right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def spread(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """Mean and standard deviation; `sign` is `+` for differences."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}f}{deviation}"


def splice(page: Path, name: str, text: str) -> None:
    """Put the text between the page's marks `<!-- name -->` and `<!-- end name -->`, if the page has them."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, mark, rest = page.read_text(encoding="utf-8").partition(begin)
    if mark:
        page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
