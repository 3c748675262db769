"""What `run` and `compare` would do: `--dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from fedms.cli.streams import print_table
from fedms.core.formatting import MISSING, clip, duration, plural, scaled, whole

if TYPE_CHECKING:
    from fedms.config import Config


def show_forecast(config: Config, comparison: bool) -> None:
    """Print what would be run: how often, rounds and clients, parameters, and about how long."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from fedms.experiments.forecast import forecast_comparison, forecast_run

    forecasts = forecast_comparison(config) if comparison else forecast_run(config)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("what")
    table.add_column("rounds × clients")
    for heading in ("runs", "parameters\ntrained", "operations\neach", "about\neach"):
        table.add_column(heading, justify="right")
    for each in forecasts:
        stages = ", ".join(f"{name} {rounds}×{cohort}" for name, rounds, cohort in each.stages)
        numbers = (str(each.runs), whole(each.parameters), scaled(each.operations, "FLOP"))
        table.add_row(Text(clip(each.name, 40)), stages or MISSING, *numbers, duration(each.seconds))
    print_table(table)
    runs, timed = sum(each.runs for each in forecasts), [each for each in forecasts if each.seconds]
    took = sum(each.runs * (each.seconds or 0) for each in timed)
    held = f"{plural(forecasts[0].clients, 'client')}, {plural(forecasts[0].samples, 'sample')}"
    typer.echo(f"{plural(runs, 'run')}, {held}, about {duration(took) if timed else MISSING} in all")
    typer.echo(
        "The time is that of a few training steps on this machine, now, times the operations of a run. "
        "Reading data, writing and reports are not in it; activation that grows costs more."
    )
