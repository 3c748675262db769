"""The commands around a config and a run's files: `init`, `config`, `methods`, `clean`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedms.cli.completion import complete_key
from fedms.cli.streams import print_table
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.formatting import plural, scaled


class Kind(StrEnum):
    """What a new config is for: one template each."""

    assistant = "assistant"
    csv = "csv"
    sites = "sites"
    text = "text"


def init(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The data: a CSV, TSV, JSONL or Parquet file, or a folder."),
    ] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--from",
            help="assistant: the embedded data; csv: one file of all samples; sites: a folder, each file or "
            "sub-folder in it one client; text: one file of prompts and answers, for a language model. "
            "Default: by FILE.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="YAML", help="The file to write; it must not be there.")
    ] = Path("fedms.yaml"),
) -> None:
    """Write a commented config for your own data, and say what was taken from the data."""
    from fedms.experiments.starter import starter

    chosen = kind or (Kind.assistant if data is None else Kind.sites if data.is_dir() else Kind.csv)
    if (data is None) != (chosen is Kind.assistant):
        raise ConfigError(f"--from {chosen.value}: {'needs a FILE' if data is None else 'takes no FILE'}")
    if out.exists():
        raise FedmsError(f"{out}: already there; name another file with --out")
    text, taken = starter(chosen.value, None if data is None else str(data), out.as_posix())
    from fedms.core.files import write_bytes

    write_bytes(out, text.encode())
    for line in taken:
        typer.echo(line)
    typer.echo(f"config  {out}\nnext    fedms partition {out}\n        fedms run {out}")


def config(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY", help="A key or a section, such as gate.prior.", autocompletion=complete_key
        ),
    ] = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="A YAML file of all keys, with comments.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema, for editors.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/config.md.")] = False,
) -> None:
    """Explain the keys of a config: all, those of a section, or one."""
    from fedms.config import reference

    if sum((key is not None, as_yaml, schema, markdown)) > 1:
        raise ConfigError("fedms config: takes one of KEY, --yaml, --schema and --markdown")
    if as_yaml:
        typer.echo(reference.template(), nl=False)
    elif markdown:
        typer.echo(reference.markdown(), nl=False)
    elif schema:
        import json

        typer.echo(json.dumps(reference.json_schema(), indent=2))
    elif key is None:
        for each in reference.all_keys():
            typer.echo(f"{each.name:<34} {each.default}")
    else:
        for each in reference.named(key):
            import textwrap

            typer.echo(f"{each.name}: {each.default}")
            for text in (each.meaning, f"Accepts: {each.kind}."):
                typer.echo(textwrap.fill(text, 80, initial_indent="    ", subsequent_indent="    "))


def clean(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs, or comparisons.")],
) -> None:
    """Remove what a finished run needs no more: states from which it could have been resumed.

    Results, reports, predictions, exports and the experts of each stage stay.
    """
    from fedms.runs.cleaning import clean_run, runs_in

    found = [run for folder in folders for run in runs_in(folder)]  # read all before anything is removed
    freed = sum(clean_run(run) for run in found)
    typer.echo(f"{scaled(freed, 'B')} freed in {plural(len(found), 'run')}")


def methods() -> None:
    """List all methods with their summaries and papers.

    On a terminal this is a table, else one line per method with tabs between the cells.
    """
    from fedms.federation.methods import METHODS

    listed = [(method.name, method.summary, method.paper or "") for method in METHODS.values()]
    if sys.stdout.isatty():
        from fedms.runs.report.tables import methods_table

        print_table(methods_table(listed))
        return
    for cells in listed:
        typer.echo("\t".join(cells).rstrip())
