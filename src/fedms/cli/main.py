"""The commands. Heavy modules are imported inside the commands, so that `fedms --help` is fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedms.cli import fleet, predictions, reports, settings
from fedms.cli.completion import complete_config, complete_method, complete_override
from fedms.cli.failures import Command, Commands, resumable
from fedms.cli.forecasts import show_forecast
from fedms.cli.inputs import whole_numbers
from fedms.cli.reports import show_comparison
from fedms.cli.streams import line_width, prepare_streams, print_table
from fedms.core.errors import ConfigError

SUMMARY = (
    "Personalised federated fine-tuning of frozen transformers: "
    "a global and a local expert for every client, mixed by a gate."
)

app = typer.Typer(
    name="fedms",
    cls=Commands,
    help=SUMMARY,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, or the name of an example, such as assistant.",
        autocompletion=complete_config,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a key, as in gate.prior=0.3. Repeatable.",
        autocompletion=complete_override,
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method", metavar="NAME", help="Short for --set method=NAME.", autocompletion=complete_method
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Short for --set seed=N.")]
DeviceName = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="Short for --set device=NAME.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be run, and about how long it takes; write nothing."),
]


def show_version(asked: bool) -> None:
    """Print the installed version and exit."""
    if asked:
        from importlib.metadata import version

        typer.echo(f"fedms {version('fedms')}")
        raise typer.Exit


@app.callback(help=SUMMARY)
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=show_version),
    ] = False,
) -> None:
    """Set what holds for every command."""
    if debug:
        os.environ["FEDMS_DEBUG"] = "1"  # for clients too: then a failure has a traceback
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without a letter shows `?` in its place


@app.command(cls=Command)
def run(
    config: ConfigFile = Path("assistant"),
    overrides: Overrides = None,
    method: MethodName = None,
    seed: Seed = None,
    device: DeviceName = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run folder; default: runs/CONFIG-METHOD-SEED."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the run in the folder, or start one if there is none."),
    ] = False,
    dry_run: DryRun = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
) -> None:
    """Run one experiment; write its run folder and report.

    Without CONFIG it is the demo, which needs no data and no network.
    """
    from fedms.config import load_config

    overrides = _with_short(overrides, method=method, seed=seed, device=device)
    # the config is checked before heavy imports, so that an error appears at once
    checked = load_config(config, overrides, config.parent)
    if dry_run:
        show_forecast(checked, comparison=False)
        return
    folder = out or Path("runs") / f"{config.stem}-{checked.method}-{checked.seed}"

    with resumable("run", config, overrides, "--out", str(folder), "--resume"):
        from fedms.cli.interrupt import Interruptible
        from fedms.experiments.console import observer

        with Interruptible(observer(quiet)) as watcher:  # before imports, so that it moves at once
            from fedms.experiments.api import run

            result = run(checked, folder, observer=watcher, resume=resume, source=config)

    from fedms.runs.report.tables import result_table

    print_table(result_table([result], width=line_width()))
    typer.echo(f"run     {folder}\nreport  {folder / 'report.html'}")


@app.command(cls=Command)
def compare(
    config: ConfigFile,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B,...",
            help="Methods, or variants in the config; default: those of the config, or all methods.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds", metavar="0,1,...", help="Seeds, as in 0,1,2 or 0-4; default: those of the config."
        ),
    ] = None,
    overrides: Overrides = None,
    device: DeviceName = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder; default: runs/CONFIG-compare. Finished runs in it are kept."
        ),
    ] = None,
    dry_run: DryRun = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the table.")] = False,
) -> None:
    """Compare methods on the same partitions and budget.

    Every method runs once with each seed. The command resumes a comparison that was interrupted.
    """
    from fedms.config import load_config
    from fedms.experiments.comparison.rows import narrowed, rows

    overrides = _with_short(overrides, device=device)
    checked = narrowed(
        load_config(config, overrides, config.parent),
        None if methods is None else methods.split(","),
        whole_numbers(seeds, "--seeds"),
    )
    rows(checked)  # before heavy imports, so that an error appears at once
    if dry_run:
        show_forecast(checked, comparison=True)
        return
    folder = out or Path("runs") / f"{config.stem}-compare"

    chosen = [
        part
        for name, value in (("--methods", methods), ("--seeds", seeds))
        if value is not None
        for part in (name, value)
    ]
    with resumable("compare", config, overrides, *chosen, "--out", str(folder)):
        from fedms.cli.interrupt import Interruptible
        from fedms.experiments.console import observer

        with Interruptible(observer(quiet)) as watcher:
            from fedms.experiments.api import compare

            compare(checked, out=folder, observer=watcher)

    from fedms.runs.reading.comparison import read_comparison

    show_comparison(read_comparison(folder))
    typer.echo(f"comparison  {folder / 'comparison.md'}")
    typer.echo(f"report  {folder / 'report.html'}")


@app.command(cls=Command)
def partition(
    config: ConfigFile,
    overrides: Overrides = None,
    seed: Seed = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the picture of the report: .png, .svg or .csv."),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="DIR", help="Write each client's samples as files; a new folder."),
    ] = None,
) -> None:
    """Show the samples and classes of each client.

    With --write, each client's splits, the class names and everyone's test samples are also written, for
    `partition.rule: files`, `data.classes` and `evaluation.public`.
    """
    from fedms.config import load_config

    checked = load_config(config, _with_short(overrides, seed=seed), config.parent)

    from fedms.runs.report.drawing import SUFFIXES, save_picture

    if out is not None and out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")

    if write is not None:
        from fedms.data.written import check_can_write

        check_can_write(write)

    from fedms.experiments import description
    from fedms.runs.report.tables import partition_summary, partition_table

    described = description.describe_partition(checked)
    if write is not None:
        description.write_partition(checked, write)
    print_table(partition_table(described, line_width()))
    typer.echo(partition_summary(described))
    if out is not None:
        from fedms.core.files import make_folder, unmake
        from fedms.runs.report.run.figures import partition_picture

        picture = partition_picture(described)
        assert picture is not None, "a partition that was just made has counts"
        made = make_folder(out.parent)
        try:
            save_picture(picture, out)
        except BaseException:
            unmake(made)
            raise
        typer.echo(f"picture  {out}")
    if write is not None:
        typer.echo(f"sites    {write / 'sites'}")


for command in (
    predictions.predict,
    predictions.evaluate,
    predictions.export,
    reports.report,
    settings.init,
    settings.config,
    settings.clean,
    settings.methods,
    fleet.site,
    fleet.serve,
    fleet.keys,
    fleet.deploy,
    fleet.join,
):
    app.command(cls=Command)(command)


def _with_short(overrides: list[str] | None, **short: str | int | None) -> list[str]:
    """All overrides; those of the short options come last."""
    return [*(overrides or []), *(f"{key}={value}" for key, value in short.items() if value is not None)]


def main() -> None:
    """The entry point."""
    prepare_streams()
    app(prog_name="fedms")
