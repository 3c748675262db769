"""Language models: what the Bayes mixture by tokens gains on constant weights, into docs/results.md.

    python bench/text.py --data DIR             # texts, the small Llama, three seeds, the page
    python bench/text.py --data DIR --prepare   # texts and Llama alone (`make text`)
    python bench/text.py --render               # only write the page, from the comparison that exists

DIR holds banking77/ and shakespeare/. The comparison is stored in runs/text/compared, and continues if
interrupted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.corpora import ROLES, pretrained_llama, speeches, texts, write_texts
from common.pages import RESULTS, ROOT, markdown_table, splice, spread
from fedms import compare
from fedms.config import load_config
from fedms.core.formatting import plural
from fedms.experiments.console import observer
from fedms.model.next_token import perplexity
from fedms.runs.reading.comparison import Comparison, RowResults, read_comparison

PLACE = ROOT / "runs" / "text"
METHODS = ["fedms", "mixture-constant"]
ROWS = 80
"""Texts of a client, the three splits together."""
USED = 0.8
"""The prior at which the mixture is judged."""
NAMES = {"fedms": "Bayes, prior", "mixture-constant": "constant weight"}

Curve = list[dict[str, float]]
"""A frontier: prior, and both losses."""


def prepare(data: Path) -> None:
    """Write the texts, and pretrain the Llama where there is none."""
    write_texts(texts(data, ROWS), PLACE / "texts.csv")
    if not (PLACE / "model" / "config.json").exists():
        others = [speech for role, _, speech in speeches(data) if role not in ROLES]
        print(f"pretraining ends at {pretrained_llama(others, PLACE / 'model'):.3f} nats a token", flush=True)


def run(seeds: list[int]) -> None:
    """The runs that do not exist yet."""
    placed = [f"model.name={PLACE / 'model'}", f"data.source={PLACE / 'texts.csv'}", "engine.workers=1"]
    config = load_config(ROOT / "examples" / "text.yaml", placed)
    with observer(quiet=False) as watching:
        compare(config, METHODS, seeds, PLACE / "compared", observer=watching)


def along_the_weight(comparison: Comparison) -> str:
    """Both perplexities at every prior, and at every constant weight: mean and deviation over seeds."""
    lines, priors = [], [f"{point['prior']:g}" for point in curves(_row(comparison, "fedms"))[0]]
    for key, whose in (("nll_local", "own"), ("nll_global", "everyone's")):
        for name, title in NAMES.items():
            found = curves(_row(comparison, name))
            cells = [
                spread([perplexity(curve[place][key]) for curve in found], 1) for place in range(len(priors))
            ]
            lines.append([f"{whose}, {title}", *cells])
    return markdown_table(["perplexity", *priors], lines)


def verdict(comparison: Comparison) -> str:
    """Whether the mixture at `USED` keeps its marks, on mean losses over seeds."""
    bayes, constant = (mean_curve(_row(comparison, name)) for name in NAMES)
    at = next(point for point in bayes if point["prior"] == USED)
    everyone, local = bayes[0], bayes[-1]
    ratio = perplexity(at["nll_local"]) / perplexity(local["nll_local"])
    away = perplexity(at["nll_global"]) / perplexity(everyone["nll_global"])
    ahead = [
        f"{point['prior']:g}"
        for point in constant
        if point["nll_local"] < at["nll_local"] and point["nll_global"] < at["nll_global"]
    ]
    runs = _row(comparison, "fedms").runs
    base = statistics.fmean(run.result["perplexity_base"] for run in runs)
    lines = [
        f"Over {plural(len(runs), 'seed')}. Before training the perplexity of own test data is {base:.1f}.",
        f"At prior {USED:g} the mixture's own perplexity differs from the local expert's by "
        f"{100 * (ratio - 1):+.1f} %: the mark (at most 1 % above it) is {_kept(ratio <= 1.01)}.",
        f"Its perplexity on everyone's data differs from the global expert's by {100 * (away - 1):+.1f} %: "
        f"the mark (below it) is {_kept(away < 1)}.",
        f"Constant weights that are better on both: {', '.join(ahead) or 'none'}; the mark (none) is "
        f"{_kept(not ahead)}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _kept(whether: bool) -> str:
    return "kept" if whether else "**missed**"


def curves(row: RowResults) -> list[Curve]:
    """The frontier of each seed."""
    return [run.result["frontier"] for run in row.runs]


def mean_curve(row: RowResults) -> Curve:
    """The frontier's means over seeds."""
    found: list[Mapping[str, Any]] = row.record["frontier"]
    return [dict(point) for point in found]


def _row(comparison: Comparison, name: str) -> RowResults:
    return next(row for row in comparison.rows if row.name == name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the data sets; required unless --render is given"
    )
    parser.add_argument("--prepare", action="store_true", help="only write the texts and the Llama")
    parser.add_argument("--render", action="store_true", help="only write the page")
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    if not given.render:
        if given.data is None:
            parser.error("give --data, or --render to write the page of an existing comparison")
        prepare(given.data.resolve())
        if given.prepare:
            return
        run([int(seed) for seed in given.seeds.split(",")])
    comparison = read_comparison(PLACE / "compared")
    for mark, made in (("text", along_the_weight(comparison)), ("text marks", verdict(comparison))):
        print(made)
        splice(RESULTS, mark, made)


if __name__ == "__main__":
    main()
