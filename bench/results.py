"""Write the tables and pictures of docs/results.md: each setting below, with `fedms compare`.

    python bench/results.py --data DIR           # all settings: hours on 2 cores; continues if interrupted
    python bench/results.py --data DIR pacs      # one setting
    python bench/results.py --render             # only write tables and pictures of existing comparisons

DIR holds banking77/, pacs/ and vit-tiny-patch16-224/. The comparison of a setting is stored in
runs/results/SETTING. The last line of output is a JSON object: for each setting, the mean and standard
deviation of each row.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from common.pages import RESULTS, ROOT, markdown_table, splice, spread
from fedms import compare
from fedms.config import load_config
from fedms.experiments.console import observer
from fedms.federation.methods import METHODS
from fedms.runs.reading.comparison import Comparison, read_comparison
from fedms.runs.report.comparison.frontier import close_up, frontier
from fedms.runs.report.comparison.tables import differences_markdown, headline_markdown, tuning_markdown
from fedms.runs.report.drawing import save_picture

RUNS = ROOT / "runs" / "results"
PAGES = (RESULTS, ROOT / "README.md")

COMMON = ["evaluation.everyone=250", "engine.workers=1"]
SENT = "statistics.second_moment=true"
"""As in the stored comparisons of the embedded corpus."""
BANKING = ["data.source=DATA/banking77", *COMMON]
PACS = ["data.source=DATA/pacs", "model.name=DATA/vit-tiny-patch16-224", *COMMON]
CORE: dict[str, Any] = {
    "methods": [
        "fedms",
        "fedavg-finetune",
        "mixture-constant",
        "statistics",
        "fedavg",
        "fedavg-sal",
        "local",
    ],
    "seeds": [0, 1, 2],
}
FIRST: dict[str, Any] = {"methods": [name for name in CORE["methods"] if name != "local"], "seeds": [0]}
"""What one machine finishes in an hour."""
FIVE = {"activation.rule": "fixed", "activation.blocks": 5}
DENSE: dict[str, Any] = {
    **CORE,
    "methods": [name for name in CORE["methods"] if name != "fedavg-sal"],
    "variants": {
        "fedms 5 blocks": {"method": "fedms", **FIVE, "activation.blocks_local": "all"},
        "fedavg-sal from 4 blocks": {"method": "fedavg-sal", "activation.blocks": 4},
        "sal-fixed 5 blocks": {"method": "sal-fixed", **FIVE},
        "sal-fixed 1 block": {"method": "sal-fixed", "activation.blocks": 1},
    },
}
"""For an example whose first stage trains all blocks: sparse activation has rows of its own."""
RATES = ("training.learning_rate", "training.local_learning_rate")
TUNED: dict[str, Any] = {"seeds": [0, 1, 2], "tune": {key: [1e-3, 3e-3] for key in RATES}}
SPARSE = ("fedavg-sal", "sal-fixed")
EVERY: dict[str, Any] = {**TUNED, "methods": list(METHODS)}
EVERY_DENSE: dict[str, Any] = {
    **TUNED,
    "methods": [name for name in METHODS if name not in SPARSE],
    "variants": {name: keys for name, keys in DENSE["variants"].items() if keys["method"] in SPARSE},
}
SMALL = ["evaluation.everyone=100", "training.batch_size=16"]
"""Limits that let a hundred runs finish in an afternoon."""
SETTINGS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "assistant": ("assistant", [*COMMON, SENT], CORE),
    "assistant-never": ("assistant", [*COMMON, SENT, "head.rederive=never"], CORE),
    "banking77-one-seed": ("banking77", [*BANKING, "partition.alpha=0.1"], FIRST),
    "banking77-alpha0.1": ("banking77", [*BANKING, "partition.alpha=0.1"], CORE),
    "banking77-alpha0.5": ("banking77", [*BANKING, "partition.alpha=0.5"], CORE),
    "pacs": ("pacs", [*PACS, "data.limit=2400"], DENSE),
    "banking77-every-method": (
        "banking77",
        [*BANKING, "partition.alpha=0.1", "data.limit=1000", *SMALL],
        EVERY,
    ),
    "pacs-every-method": ("pacs", [*PACS, "data.limit=600", *SMALL], EVERY_DENSE),
}
"""Name -> example, the keys that the setting changes (DATA stands for --data), and the section `compare`."""


def run(setting: str, data: Path, methods: list[str] | None, seeds: list[int] | None) -> None:
    """Run the parts of a setting that do not exist yet."""
    example, keys, compared = SETTINGS[setting]
    section = f"compare={json.dumps(compared)}"
    placed = [key.replace("=DATA/", f"={data}/") for key in keys]
    config = load_config(ROOT / "examples" / f"{example}.yaml", [section, *placed])
    print(f"== {setting}", flush=True)
    with observer(quiet=False) as watching:
        compare(config, methods, seeds, RUNS / setting, observer=watching)


def is_whole(setting: str, comparison: Comparison) -> bool:
    """Whether the comparison has all rows and seeds. A page shows complete comparisons only."""
    compared = SETTINGS[setting][2]
    methods = [*compared["methods"], *compared.get("variants", {})]
    seeds: list[int] = compared["seeds"]
    return [row.name for row in comparison.rows] == methods and comparison.seeds == seeds


def render(setting: str, comparison: Comparison) -> None:
    """Write the tables and pictures of the setting into the docs."""
    for kind, picture in (("frontier", frontier(comparison)), ("near", close_up(comparison))):
        if picture:
            save_picture(picture, ROOT / "docs" / "pictures" / f"{kind}-{setting}.png")
    for page in PAGES:
        splice(page, f"table {setting}", headline_markdown(comparison))
        splice(page, f"differences {setting}", differences_markdown(comparison))
        splice(page, f"tuning {setting}", tuning_markdown(comparison))
        splice(page, f"priors {setting}", along_the_prior(comparison))
        splice(page, f"constants {setting}", against_constants(comparison))


def along_the_prior(comparison: Comparison) -> str:
    """Both accuracies of FedMS at every prior: mean and standard deviation over seeds."""
    fedms = next(row for row in comparison.rows if row.name == "fedms")
    priors = [point["prior"] for point in fedms.runs[0].result["frontier"]]
    rows = []
    for metric in ("accuracy_local", "accuracy_global"):
        rows.append([metric.replace("_", " ")])
        for place in range(len(priors)):
            values = [run.result["frontier"][place][metric] for run in fedms.runs]
            rows[-1].append(spread(values))
    return markdown_table(["prior", *(f"{prior:g}" for prior in priors)], rows)


def best_own(curve: list[dict[str, float]], everyone: float) -> float | None:
    """The highest own accuracy on a frontier with `everyone` or more; linear between points."""
    own = [point["accuracy_local"] for point in curve if point["accuracy_global"] >= everyone]
    for one, other in itertools.pairwise(curve):
        (low, low_own), (high, high_own) = sorted(
            (each["accuracy_global"], each["accuracy_local"]) for each in (one, other)
        )
        if low < everyone <= high:
            own.append(low_own + (high_own - low_own) * (everyone - low) / (high - low))
    return max(own, default=None)


def against_constants(comparison: Comparison) -> str:
    """Own accuracy of FedMS minus that of each constant weight, at equal accuracy on everyone's data.

    In points: mean and standard deviation over seeds.
    """
    fedms, constant = (
        next(row for row in comparison.rows if row.name == name) for name in ("fedms", "mixture-constant")
    )
    cells = []
    for place, point in enumerate(constant.record["frontier"]):
        gains = []
        for run, other in zip(fedms.runs, constant.runs, strict=True):
            beside = other.result["frontier"][place]
            own = best_own(run.result["frontier"], beside["accuracy_global"])
            if own is not None:
                gains.append(100 * (own - beside["accuracy_local"]))
        cells.append((f"{point['prior']:g}", spread(gains, 1, "+") if gains else "–"))
    weights, points = zip(*cells, strict=True)
    return markdown_table(["constant weight", *weights], [["FedMS, own accuracy, points", *points]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "settings", nargs="*", metavar="SETTING", help=f"default: all of {', '.join(SETTINGS)}"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the data sets and the ViT; required unless --render is given"
    )
    parser.add_argument("--methods", help="row names, separated by commas; default: all")
    parser.add_argument("--seeds", help="default: 0,1,2")
    parser.add_argument(
        "--render",
        action="store_true",
        help="only write tables and pictures, from the comparisons that exist",
    )
    given = parser.parse_args()
    if unknown := [name for name in given.settings if name not in SETTINGS]:
        parser.error(f"{unknown[0]}: no such setting; there are {', '.join(SETTINGS)}")
    if not given.render and given.data is None:
        parser.error("give --data to run the settings, or --render to write the existing comparisons")
    settings = given.settings or list(SETTINGS)
    for setting in [] if given.render else settings:
        methods = given.methods.split(",") if given.methods else None
        seeds = [int(seed) for seed in given.seeds.split(",")] if given.seeds else None
        run(setting, given.data.resolve(), methods, seeds)
    made = {}
    for setting in settings:
        if not (RUNS / setting / "comparison.json").exists():
            continue
        comparison = read_comparison(RUNS / setting)
        made[setting] = {
            row.name: {"mean": row.record["mean"], "std": row.record["std"]} for row in comparison.rows
        }
        if is_whole(setting, comparison):
            render(setting, comparison)
    print(json.dumps(made))


if __name__ == "__main__":
    main()
