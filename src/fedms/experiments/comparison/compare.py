"""A comparison from its config to comparison.json: tuning, runs, summary."""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedms.config import Config
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.files import read_json, write_bytes, write_json
from fedms.engines.local import worker_count
from fedms.engines.memory import forget_peak
from fedms.engines.registry import REMOTE
from fedms.experiments import experiment
from fedms.experiments.comparison.differences import summarise
from fedms.experiments.comparison.folder import PREFIX_FOLDER, claimed, is_finished
from fedms.experiments.comparison.plan import PlannedRun, plan
from fedms.experiments.comparison.rows import Row, baseline, rows
from fedms.experiments.observers import Observer, Silent
from fedms.experiments.trackers import require_trackers
from fedms.runs.environment import describe_environment
from fedms.runs.folder import RunFolder
from fedms.runs.reading.comparison import read_comparison
from fedms.runs.reading.measures import LOSS, measure_of
from fedms.runs.reading.run import read_result
from fedms.runs.report.comparison.publishing import WRITERS

Keys = dict[str, Any]


def compare(config: Config, out: Path, observer: Observer | None = None) -> dict[str, Any]:
    """Run the rows of `config.compare` into the folder `out`; finished runs in it are kept.

    Returns:
        The content of comparison.json.

    Raises:
        ConfigError: a row, a variant or a candidate is not a valid config, or clients are real sites. Nothing
            has been written then.
        FedmsError: the folder holds something else, or a run failed. Finished runs stay.
    """
    require_trackers(config)
    if config.engine.name in REMOTE:
        raise ConfigError(f"engine.name: must be local for a comparison, not {config.engine.name}")
    watcher = observer or Silent()
    compared = rows(config)
    trials = {row.name: trials_of(row, config) for row in compared}
    with claimed(out, config):
        perform(out, plan([run for tried in trials.values() for run, _ in tried]), watcher, "tuning run")
        tuning = {row: choose(out, tried, criterion(config)) for row, tried in trials.items() if tried}
        wanted = [
            (row, seed, run_of(row, seed, config, trials, tuning))
            for seed in config.compare.seeds
            for row in compared
        ]
        perform(out, plan([run for _, _, run in wanted]), watcher, "run")
        write_json(out / "comparison.json", summed_up(out, config, compared, wanted, tuning))
        compared_now = read_comparison(out)
        for suffix, written in WRITERS.items():
            write_bytes(out / f"comparison{suffix}", written(compared_now).encode())
        return dict(read_json(out / "comparison.json"))


def perform(out: Path, runs: Sequence[PlannedRun], observer: Observer, what: str) -> None:
    """Run the planned runs that are not finished yet, in this order; `what` names them in notes."""
    there = {run.folder for run in runs if is_finished(out / run.folder, run.config)}
    _check_unchanged(out, [run for run in runs if run.folder in there])
    awaited = {run.first for run in runs if run.folder not in there}
    runs = [run for run in runs if not run.hidden or run.folder in there | awaited]
    if there:
        observer.note(f"{len(there)} of {len(runs)} {what}s are finished already")
    for number, run in enumerate(runs, start=1):
        if run.folder in there:
            continue
        observer.note(f"{what} {number} of {len(runs)}: {run.label}")
        gc.collect()  # frees the last run's world, which would count as memory of this run
        forget_peak()
        try:
            first = out / run.first if run.first else None
            experiment.run(
                run.config, out / run.folder, observer, first, resume=True, prefixes=out / PREFIX_FOLDER
            )
        except FedmsError as error:
            raise type(error)(f"{run.label}: {error}") from None


def _check_unchanged(out: Path, finished: Sequence[PlannedRun]) -> None:
    """Raise FedmsError if data or model have changed since one of these runs."""
    by_names: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in finished:
        named = run.config.model_dump_json(include={"seed", "data", "model", "partition"})
        by_names[named].append(run)
    for runs in by_names.values():
        experiment.check_unchanged(runs[0].config, [RunFolder(out / run.folder) for run in runs])


# Tuning: every combination of the grid runs once, on the first seed, and is scored on validation data only.


def trials_of(row: Row, config: Config) -> list[tuple[PlannedRun, Keys]]:
    """One run for each combination of the grid; none if there is only one combination."""
    seed, grid = config.compare.seeds[0], row.grid(config)
    if len(grid) < 2:
        return []
    return [
        (
            PlannedRun(
                f"tuning/{row.name}/{_name(keys)}",
                f"{row.name}, {_words(keys)}, seed {seed}",
                row.experiment(config, seed, keys),
            ),
            keys,
        )
        for keys in grid
    ]


def criterion(config: Config) -> str:
    """The figure on validation data by which combinations are chosen."""
    return config.compare.criterion or measure_of({"task": config.task}).own


def choose(out: Path, tried: Sequence[tuple[PlannedRun, Keys]], criterion: str) -> dict[str, Any]:
    """Every combination with its score, and the best one (the first of equals)."""
    better = min if criterion in LOSS.keys else max
    candidates = [
        {
            "keys": keys,
            "folder": run.folder,
            "score": read_result(out / run.folder)["validation"][criterion],
        }
        for run, keys in tried
    ]
    return {
        "candidates": candidates,
        "chosen": better(candidates, key=lambda candidate: candidate["score"])["keys"],
    }


def run_of(
    row: Row,
    seed: int,
    config: Config,
    trials: Mapping[str, Sequence[tuple[PlannedRun, Keys]]],
    tuning: Mapping[str, Mapping[str, Any]],
) -> PlannedRun:
    """The run of this row with this seed. For a tuned row and the first seed it is the trial that won."""
    label = f"{row.name}, seed {seed}"
    chosen = chosen_for(row, config, tuning)
    if row.name in tuning and seed == config.compare.seeds[0]:
        return replace(next(run for run, keys in trials[row.name] if keys == chosen), label=label)
    return PlannedRun(f"runs/{row.name}-{seed}", label, row.experiment(config, seed, chosen))


def chosen_for(row: Row, config: Config, tuning: Mapping[str, Mapping[str, Any]]) -> Keys:
    """The keys that tuning chose for this row."""
    return dict(tuning[row.name]["chosen"]) if row.name in tuning else row.grid(config)[0]


def _words(keys: Keys) -> str:
    return " ".join(f"{key}={value}" for key, value in keys.items())


def _name(keys: Keys) -> str:
    """A folder's name for these keys: the keys themselves, or a digest if they do not make a name."""
    words = _words(keys)
    return (
        words
        if re.fullmatch(r"[\w.=+ -]{1,120}", words, re.ASCII)
        else hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:12]
    )


# Summary.


def summed_up(
    out: Path,
    config: Config,
    compared: Sequence[Row],
    wanted: Sequence[tuple[Row, int, PlannedRun]],
    tuning: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of comparison.json."""
    runs: list[dict[str, Any]] = [
        {
            "row": row.name,
            "seed": seed,
            "folder": run.folder,
            "result": read_result(out / run.folder),
        }
        for row, seed, run in wanted
    ]
    against = baseline(config, compared)
    summaries = summarise(
        {row.name: [run["result"] for run in runs if run["row"] == row.name] for row in compared}, against
    )
    return {
        "config": config.model_dump(mode="json"),
        # without `deterministic` each run chooses its own number of workers
        "environment": describe_environment(config, worker_count(config) if config.deterministic else None),
        "seeds": list(config.compare.seeds),
        "baseline": against,
        "methods": [
            {
                "name": row.name,
                "method": row.method.name,
                "summary": row.method.summary,
                "paper": row.method.paper,
                "overrides": row.overrides,
                "tuned": chosen_for(row, config, tuning),
                **summaries[row.name],
            }
            for row in compared
        ],
        "runs": runs,
        "tuning": {
            "criterion": criterion(config),
            "seed": config.compare.seeds[0],
            "grid": config.compare.model_dump(mode="json")["tune"],
            "rows": dict(tuning),
        }
        if tuning
        else {},
    }
