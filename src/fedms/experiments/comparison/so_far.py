"""What a comparison that is not finished has come to."""

from __future__ import annotations

from pathlib import Path

from fedms.config import load_config
from fedms.core.errors import FedmsError
from fedms.core.formatting import plural
from fedms.experiments.comparison.compare import choose, criterion, run_of, summed_up, trials_of
from fedms.experiments.comparison.folder import CONFIG_FILE
from fedms.experiments.comparison.rows import rows
from fedms.runs.reading.comparison import Comparison, comparison_of
from fedms.runs.reading.run import RESULT


def so_far(folder: Path) -> Comparison:
    """The rows of a comparison that have finished runs, over these runs. Nothing is written.

    Raises:
        FedmsError: no run is finished yet, the folder is no comparison's, or a file is damaged.
    """
    config = load_config(folder / CONFIG_FILE)
    compared = rows(config)
    trials = {row.name: trials_of(row, config) for row in compared}
    tuning = {
        row: choose(folder, tried, criterion(config))
        for row, tried in trials.items()
        if tried and all((folder / run.folder / RESULT).exists() for run, _ in tried)
    }
    finished = [
        (row, seed, run)
        for seed in config.compare.seeds
        for row in compared
        if row.name in tuning or not trials[row.name]
        for run in [run_of(row, seed, config, trials, tuning)]
        if (folder / run.folder / RESULT).exists()
    ]
    if not finished:
        raise FedmsError(f"{folder}: no run of this comparison is finished yet")
    there = [row for row in compared if any(row is each for each, *_ in finished)]
    waiting = [row.name for row in compared if row not in there]
    said = summed_up(folder, config, there, finished, tuning)
    planned = len(compared) * len(config.compare.seeds)
    text = f"This comparison is not finished: {len(finished)} of {plural(planned, 'run')} so far"
    text += f"; no run yet of {', '.join(waiting)}." if waiting else "."
    return comparison_of(folder, said, unfinished=f"{text} Rows may stand on different seeds.")
