"""The command `report`: reports again, results side by side, and comparisons for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedms.cli.streams import print_table
from fedms.core.errors import ConfigError
from fedms.core.formatting import one_line


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs or comparisons.")],
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="csv|tex|md", help="Print comparisons in this form; write nothing."),
    ] = None,
) -> None:
    """Write reports of finished runs or comparisons again.

    Also show their results in one table.
    """
    if form is not None:
        _print_comparisons(folders, form)
        return
    from fedms.runs.reading.comparison import is_comparison, read_comparison
    from fedms.runs.reading.run import read_run
    from fedms.runs.report.comparison.page import write_comparison_report
    from fedms.runs.report.run.page import write_report
    from fedms.runs.report.tables import result_table

    comparisons = [folder for folder in folders if is_comparison(folder)]
    runs = [folder for folder in folders if folder not in comparisons]
    for folder in comparisons:
        read_comparison(folder)  # read everything before writing anything
    results = [read_run(folder).result for folder in runs]
    written = [
        write_comparison_report(folder) if folder in comparisons else write_report(folder)
        for folder in folders
    ]
    if results:
        print_table(result_table(results, [str(folder) for folder in runs]))
    for folder in comparisons:
        show_comparison(folder)
    for path in written:
        typer.echo(f"report  {path}")


def _print_comparisons(folders: list[Path], form: str) -> None:
    """Print comparisons as CSV, LaTeX or Markdown."""
    from fedms.runs.reading.comparison import read_comparison
    from fedms.runs.report.comparison.publishing import WRITERS

    if f".{form}" not in WRITERS:
        raise ConfigError(f"--format {one_line(form)}: must be csv, tex or md")
    for comparison in [read_comparison(folder) for folder in folders]:
        typer.echo(WRITERS[f".{form}"](comparison), nl=False)


def show_comparison(folder: Path) -> None:
    """Print a comparison as a table, with an explanation of its marks."""
    from fedms.runs.reading.comparison import read_comparison
    from fedms.runs.report.comparison.columns import marks_of
    from fedms.runs.report.comparison.tables import comparison_table

    comparison = read_comparison(folder)
    print_table(comparison_table(comparison))
    typer.echo(marks_of(comparison))
