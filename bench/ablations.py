"""Run each ablation of examples/ablations/ with `fedms compare`, and write its table into docs/results.md.

    python bench/ablations.py                # all, on the embedded corpus: hours; continues if interrupted
    python bench/ablations.py head rank      # these two
    python bench/ablations.py --data DIR     # on BANKING77, from DIR/banking77
    python bench/ablations.py --render       # only write the tables, from the comparisons that exist

A comparison is stored in runs/ablations/DATA/NAME or NAME-VALUE. A table stands between the marks `ablation
NAME` (BANKING77: `ablation banking77 NAME`). The last line of output is a JSON object: for each comparison,
the mean and standard deviation of each row.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from common.pages import RESULTS, ROOT, markdown_table, splice
from fedms import compare
from fedms.config import Config, load_config
from fedms.core.errors import FedmsError
from fedms.experiments.comparison.compare import run_of
from fedms.experiments.comparison.folder import claimed, is_finished
from fedms.experiments.comparison.plan import plan
from fedms.experiments.comparison.rows import rows
from fedms.experiments.console import observer
from fedms.runs.reading.comparison import Comparison, read_comparison
from fedms.runs.report.comparison.tables import headline_markdown

EXAMPLES = ROOT / "examples" / "ablations"
RUNS = ROOT / "runs" / "ablations"
SWEPT = {
    "alpha": ("partition.alpha", ("0.05", "0.1", "0.5", "1.0")),
    "clients": ("partition.clients", ("10", "20", "40")),
}
"""Ablations of the partition. All rows of a comparison share one partition, so each value needs its own."""
PRIORS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""The priors at which the tables show the frontiers of the rows."""
COMMON = ("evaluation.everyone=200", "engine.workers=1")
BANKING = ("data.limit=2500", "training.batch_size=16")
"""Limits that keep a run at two minutes."""


def settings(name: str) -> dict[str, list[str]]:
    """The comparisons of an ablation by folder name, each with the keys that it changes."""
    if name not in SWEPT:
        return {name: []}
    key, values = SWEPT[name]
    return {f"{name}-{value}": [f"{key}={value}"] for value in values}


def perform(name: str, runs: Path, keys: list[str]) -> None:
    """Run the comparisons of an ablation that do not exist yet."""
    for folder, own in settings(name).items():
        print(f"== {folder}", flush=True)
        config = load_config(EXAMPLES / f"{name}.yaml", [*keys, *own])
        take_over(config, runs / folder)
        with observer(quiet=False) as watching:
            compare(config, out=runs / folder, observer=watching)


def take_over(config: Config, out: Path) -> None:
    """Copy the runs that another ablation has finished with the same config: most share the baseline row."""
    with claimed(out, config):
        for run in plan(
            [run_of(row, seed, config, {}, {}) for seed in config.compare.seeds for row in rows(config)]
        ):
            if is_finished(out / run.folder, run.config):
                continue
            for other in sorted(out.parent.glob(f"*/{run.folder}")):
                try:
                    there = other.parts[: len(out.parts)] != out.parts and is_finished(other, run.config)
                except FedmsError:  # a row with the same name and another config
                    continue
                if there:
                    shutil.rmtree(out / run.folder, ignore_errors=True)
                    shutil.copytree(other, out / run.folder)
                    break


def along_the_prior(comparison: Comparison) -> str:
    """Both accuracies at several priors, for all rows with a frontier; empty for fewer than two rows."""
    rows = [
        (row.name, {point["prior"]: point for point in row.record["frontier"]})
        for row in comparison.rows
        if row.record["frontier"]
    ]
    if len(rows) < 2:
        return ""
    cells = (
        [
            name,
            *(
                f"{curve[prior]['accuracy_local']:.3f} / {curve[prior]['accuracy_global']:.3f}"
                for prior in PRIORS
            ),
        ]
        for name, curve in rows
    )
    return "\n\n" + markdown_table(["own / everyone's, at prior", *(f"{prior:g}" for prior in PRIORS)], cells)


def section(name: str, made: dict[str, Comparison]) -> str:
    """The tables of an ablation: one, or one for each value of a sweep."""
    tables = {
        folder: headline_markdown(comparison) + along_the_prior(comparison)
        for folder, comparison in made.items()
    }
    if name not in SWEPT:
        return tables[name]
    key, _ = SWEPT[name]
    return "\n\n".join(
        f"`{key}` {folder.removeprefix(f'{name}-')}:\n\n{table}" for folder, table in tables.items()
    )


def main() -> None:
    known = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ablations", nargs="*", metavar="NAME", help=f"default: all of {', '.join(known)}")
    parser.add_argument(
        "--data", type=Path, help="folder with banking77/; without it the embedded corpus is used"
    )
    parser.add_argument(
        "--render", action="store_true", help="only write the tables, from the comparisons that exist"
    )
    given = parser.parse_args()
    if unknown := [name for name in given.ablations if name not in known]:
        parser.error(f"{unknown[0]}: no such ablation; there are {', '.join(known)}")
    names = given.ablations or known
    data = ["data.source=" + str(given.data.resolve() / "banking77"), *BANKING] if given.data else []
    keys = [*COMMON, *data]
    runs, mark = (
        (RUNS / "banking77", "ablation banking77") if given.data else (RUNS / "assistant", "ablation")
    )
    for name in [] if given.render else names:
        perform(name, runs, keys)
    results = {}
    for name in names:
        made = {
            folder: read_comparison(runs / folder)
            for folder in settings(name)
            if (runs / folder / "comparison.json").exists()
        }
        for folder, comparison in made.items():
            results[folder] = {
                row.name: {"mean": row.record["mean"], "std": row.record["std"]} for row in comparison.rows
            }
        if made.keys() == settings(name).keys():
            splice(RESULTS, f"{mark} {name}", section(name, made))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
