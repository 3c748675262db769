"""Choose defaults and the settings of the examples on validation data, three seeds each.

    python bench/choices.py --data DIR               # all examples: hours on 2 cores; goes on if interrupted
    python bench/choices.py assistant                # one example
    python bench/choices.py assistant --rows means   # some of its candidates
    python bench/choices.py --render                 # only write the tables, from the runs that exist

A quarter of each client's training samples is validation data here, so that there is something to choose by.
All figures are of the validation split: no test data is read for a choice. A candidate is a row of a `fedms
compare`, which is stored in runs/choices/EXAMPLE; `fedms` is training that hardly moves, on pictures the
example as it is. *Balanced* is the largest mean of both accuracies along the frontier: the accuracy of a
client that meets both kinds of data alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from common.pages import RESULTS, ROOT, markdown_table, splice, spread
from fedms import compare
from fedms.config import load_config
from fedms.experiments.console import observer
from fedms.runs.reading.comparison import read_comparison

RUNS = ROOT / "runs" / "choices"
COMMON = (
    "partition.validation=0.25",
    "evaluation.validation=true",
    "engine.workers=1",
    "statistics.second_moment=true",  # as in the stored runs; candidates below do without
)
STILL = (
    "training.batch_size=32",
    "training.learning_rate=1e-3",
    "training.head_learning_rate=1e-4",
    "activation.rule=plateau",
    "head.kind=statistics",
    "statistics.anchor=0",
)
"""Where the candidates begin: training that hardly moves away from its start."""
MOVING = {
    "training.batch_size": 8,
    "training.learning_rate": 3e-3,
    "training.head_learning_rate": 1e-3,
}
"""Training that moves away from its start."""
TWO = {"activation.rule": "fixed", "activation.blocks": 2}
NAMES = {"statistics.anchor": 2}
MEANS = {"head.kind": "means"}
NO_SECOND = {"statistics.second_moment": False}
ESTIMATED = {"statistics.second_moment": "auto"}
TEXT: dict[str, dict[str, Any]] = {
    "never": {"head.rederive": "never"},
    "means": MEANS,
    "names": NAMES,
    "names + two blocks": NAMES | TWO,
    "means + moving + two blocks": MEANS | MOVING | TWO,
    "names + moving + two blocks": NAMES | MOVING | TWO,
    "names .8 + moving + two blocks": NAMES | MOVING | TWO | {"statistics.shrinkage": 0.8},
    "means + moving + two blocks without second moment": MEANS | MOVING | TWO | NO_SECOND,
    "names + moving + two blocks without second moment": NAMES | MOVING | TWO | NO_SECOND,
    "means + moving + two blocks with estimated second moment": MEANS | MOVING | TWO | ESTIMATED,
    "names + moving + two blocks with estimated second moment": NAMES | MOVING | TWO | ESTIMATED,
}
FIVE = {"activation.blocks": 5}
PICTURES: dict[str, dict[str, Any]] = {
    "never": {"head.rederive": "never"},
    "five blocks": {"activation.rule": "fixed", **FIVE},
    "warm then five blocks": {"activation.rule": "warm", **FIVE},
    "no second moment": NO_SECOND,
    "estimated second moment": ESTIMATED,
    "means": MEANS,
    "means and head at 1e-3": MEANS | {"training.head_learning_rate": 1e-3},
}
EXAMPLES: dict[str, tuple[list[str], dict[str, dict[str, Any]]]] = {
    "assistant": ([*STILL, "activation.blocks=1", "evaluation.everyone=300"], TEXT),
    "banking77": (
        [*STILL, "data.source=DATA/banking77", "data.limit=3000", "evaluation.everyone=300"],
        TEXT,
    ),
    "pacs": (
        [
            "data.source=DATA/pacs",
            "model.name=DATA/vit-tiny-patch16-224",
            "data.limit=1500",
            "evaluation.everyone=300",
        ],
        PICTURES,
    ),
}
"""Keys of all candidates (DATA stands for --data), and the candidates beside these keys alone."""


def run(example: str, data: Path | None, rows: list[str] | None, seeds: list[int]) -> None:
    """Run the candidates that do not exist yet."""
    keys, candidates = EXAMPLES[example]
    compared = {"methods": ["fedms"], "variants": candidates, "seeds": seeds}
    placed = [key.replace("=DATA/", f"={data}/") for key in keys]
    path = ROOT / "examples" / f"{example}.yaml"
    config = load_config(path, [*COMMON, *placed, f"compare={json.dumps(compared)}"])
    with observer(quiet=False) as watching:
        compare(config, rows, seeds, RUNS / example, observer=watching)


def balanced(frontier: list[dict[str, float]]) -> float:
    """The largest mean of both accuracies along a frontier."""
    return max((point["accuracy_local"] + point["accuracy_global"]) / 2 for point in frontier)


def table(example: str) -> str:
    """The candidates with the accuracies of their validation data."""
    rows = []
    for row in read_comparison(RUNS / example).rows:
        judged = [run.result["validation"] for run in row.runs]
        columns = [
            [each["accuracy_local"] for each in judged],
            [each["accuracy_global"] for each in judged],
            [balanced(each["frontier"]) for each in judged],
        ]
        flops = statistics.fmean(run.result["train_flops"] for run in row.runs)
        rows.append([row.name, *(spread(values) for values in columns), f"{flops / 1e12:.2f}"])
    return markdown_table(["candidate", "own", "everyone's", "balanced", "TFLOP"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help=f"default: {', '.join(EXAMPLES)}")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--rows", help="candidates, separated by commas; default: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--render", action="store_true", help="only write the tables")
    given = parser.parse_args()
    if unknown := [name for name in given.examples if name not in EXAMPLES]:
        parser.error(f"{unknown[0]}: no such example; there are {', '.join(EXAMPLES)}")
    for example in given.examples or list(EXAMPLES):
        if not given.render:
            rows = given.rows.split(",") if given.rows else None
            seeds = [int(seed) for seed in given.seeds.split(",")]
            run(example, given.data.resolve() if given.data else None, rows, seeds)
        made = table(example)
        print(f"{example}\n{made}\n")
        splice(RESULTS, f"choices {example}", made)


if __name__ == "__main__":
    main()
