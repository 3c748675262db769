"""The command `report`: reports again, results side by side, and comparisons for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedms.cli.streams import line_width, print_table
from fedms.core.errors import ConfigError
from fedms.core.formatting import one_line, plural

if TYPE_CHECKING:
    from fedms.runs.reading.comparison import Comparison


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs or comparisons.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="csv|tex|md|pdf",
            help="Print comparisons in this form and write nothing; pdf: write the pictures as PDF.",
        ),
    ] = None,
) -> None:
    """Write reports of runs or comparisons again, with their results in one table.

    What is not finished is shown as far as it is there.
    """
    if form == "pdf":
        _write_pdfs(folders)
        return
    if form is not None:
        _print_comparisons(folders, form)
        return
    from fedms.runs.reading.comparison import is_comparison
    from fedms.runs.reading.run import read_run
    from fedms.runs.report.comparison.page import write_comparison_report
    from fedms.runs.report.run.page import write_report
    from fedms.runs.report.tables import result_table

    # everything is read before anything is written
    comparisons = {folder: _comparison(folder) for folder in folders if is_comparison(folder)}
    runs = {folder: read_run(folder, unfinished=True) for folder in folders if folder not in comparisons}
    written = [
        write_comparison_report(folder, comparisons[folder])
        if folder in comparisons
        else write_report(folder)
        for folder in folders
    ]
    if finished := {str(folder): run.result for folder, run in runs.items() if run.finished}:
        print_table(result_table([*finished.values()], [*finished], line_width()))
    for folder, run in runs.items():
        if not run.finished:
            typer.echo(f"{folder}: not finished, {plural(run.rounds_done, 'round')} so far")
    for comparison in comparisons.values():
        show_comparison(comparison)
    for path in written:
        typer.echo(f"report  {path}")


def _comparison(folder: Path) -> Comparison:
    """A comparison, or what one that is not finished has come to so far."""
    from fedms.runs.reading.comparison import COMPARISON_FILE, read_comparison

    if (folder / COMPARISON_FILE).exists():
        return read_comparison(folder)
    from fedms.experiments.comparison.so_far import so_far

    return so_far(folder)


def _write_pdfs(folders: list[Path]) -> None:
    """Write the pictures of runs and comparisons as PDF."""
    from fedms.runs.reading.comparison import is_comparison
    from fedms.runs.reading.run import read_run
    from fedms.runs.report.comparison.figures import pictures as pictures_of_comparison
    from fedms.runs.report.drawing import save_pictures
    from fedms.runs.report.run.figures import pictures as pictures_of_run

    drawn = {
        folder: pictures_of_comparison(_comparison(folder))
        if is_comparison(folder)
        else pictures_of_run(read_run(folder, unfinished=True))
        for folder in folders
    }
    for folder, pictures in drawn.items():
        for path in save_pictures(pictures, folder / "figures", [".pdf"]):
            typer.echo(f"picture  {path}")


def _print_comparisons(folders: list[Path], form: str) -> None:
    """Print comparisons as CSV, LaTeX or Markdown."""
    from fedms.runs.reading.comparison import read_comparison
    from fedms.runs.report.comparison.publishing import WRITERS

    if f".{form}" not in WRITERS:
        raise ConfigError(f"--format {one_line(form)}: must be csv, tex, md or pdf")
    for comparison in [read_comparison(folder) for folder in folders]:
        typer.echo(WRITERS[f".{form}"](comparison), nl=False)


def show_comparison(comparison: Comparison) -> None:
    """Print a comparison as a table, with an explanation of its marks."""
    from fedms.runs.report.comparison.columns import marks_of
    from fedms.runs.report.comparison.tables import comparison_table

    print_table(comparison_table(comparison, line_width()))
    typer.echo(marks_of(comparison))
    if comparison.unfinished:
        typer.echo(comparison.unfinished)
