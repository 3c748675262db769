"""`fedms.run` and `fedms.compare`: the commands as Python functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedms.config import Config, load_config
from fedms.config.examples import config_file
from fedms.experiments import experiment
from fedms.experiments.comparison import compare as comparing
from fedms.experiments.comparison.rows import narrowed
from fedms.experiments.console import default_observer
from fedms.experiments.observers import Observer
from fedms.runs.frames import Result
from fedms.runs.report.comparison.page import write_comparison_report
from fedms.runs.report.run.page import write_report


def run(
    config: Config | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    observer: Observer | None = None,
    reuse: str | Path | None = None,
    resume: bool = False,
    report: bool = True,
    source: str | Path | None = None,
) -> Result:
    """Run one experiment into a folder; return its result: result.json's content, and tables.

    Args:
        config: the experiment: a `Config`, a YAML file, or a mapping of its keys.
        out: the run folder. It must be empty or new, unless `resume` is true.
        observer: receives the progress; default: a line for each round in a notebook, elsewhere none.
        reuse: a finished run of this experiment's first stage alone. That stage is then not trained again.
        resume: continue the run in the folder, to the same result. Without a run there, start one.
        report: also write report.html and its figures.
        source: the file that the config was read from, whose comments config.yaml keeps. Default: `config`,
            where that is a file.

    Raises:
        ConfigError: a wrong key, type, range or combination. Nothing has been written then.
        FedmsError: data, model or folder cannot be used.
    """
    checked = config if isinstance(config, Config) else load_config(config)
    source = config if source is None and isinstance(config, str | Path) else source
    written = None if source is None else config_file(Path(source)).read_text(encoding="utf-8-sig")
    watcher = observer or default_observer()
    first = None if reuse is None else Path(reuse)
    result = experiment.run(checked, Path(out), watcher, first, resume, written=written)
    if report:
        write_report(Path(out))
    return Result(result, out)


def compare(
    config: Config | str | Path | Mapping[str, Any],
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    out: str | Path | None = None,
    *,
    observer: Observer | None = None,
    report: bool = True,
) -> dict[str, Any]:
    """Compare methods on the same partitions and the same budget; return the content of comparison.json.

    Args:
        config: the experiment, as for `run`. Its section `compare` names rows, seeds and the grid of tuning.
        methods: these methods, or variants that the config names; default: those of the config.
        seeds: default: those of the config.
        out: the comparison's folder. Finished runs in it are kept. Default: runs/NAME-compare, as the config
            file is named.
        observer: receives the progress; default: a line for each round in a notebook, elsewhere none.
        report: also write report.html and its figures.

    Raises:
        ConfigError: a wrong key, type, range or combination, also in a variant. Nothing has been written
            then.
        FedmsError: data, model or folder cannot be used, or a run failed. Finished runs stay.
    """
    checked = narrowed(config if isinstance(config, Config) else load_config(config), methods, seeds)
    folder = Path(out) if out is not None else default_folder(config)
    said = comparing.compare(checked, folder, observer or default_observer())
    if report:
        write_comparison_report(folder)
    return said


def default_folder(config: Config | str | Path | Mapping[str, Any]) -> Path:
    """Default folder of a comparison: runs/NAME-compare for the file NAME.yaml, else runs/compare."""
    name = f"{Path(config).stem}-compare" if isinstance(config, str | Path) else "compare"
    return Path("runs") / name
