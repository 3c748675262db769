"""Sparse activation against all blocks: accuracy against operations and bytes, at equal rounds.

    python bench/sal.py --write                      # the embedded corpus, as in docs/performance.md
    python bench/sal.py --data DIR                   # BANKING77, from DIR/banking77
    python bench/sal.py --data DIR --limit 2500      # with fewer messages

Same partition, cohorts, local steps, head and seeds; the rows differ in which blocks are active. A comparison in runs/sal/, gone on
with where it was interrupted. *Near* is what was spent when the validation score first came within half a point of the score with
which all blocks ended. The last line printed is one JSON object, each row's means over seeds and its shares of what all blocks took.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from fedms import compare
from fedms.config import load_config
from fedms.experiments.console import observer
from fedms.runs.reading.comparison import Comparison, RowResults, SeedRun, read_comparison
from pages import ROOT, splice

PAGE = ROOT / "docs" / "performance.md"
ALL = "fedavg"
NEAR = 0.005
SAL = {"method": "fedavg-sal"}
ROWS = {
    "methods": [ALL, "fedavg-sal"],
    "variants": {
        "every 2 rounds": {**SAL, "activation.rule": "every", "activation.every": 2},
        "fixed 1 block": {**SAL, "activation.rule": "fixed", "activation.blocks": 1},
        "fixed 2 blocks": {**SAL, "activation.rule": "fixed", "activation.blocks": 2},
    },
    "seeds": [0, 1, 2],
    "baseline": ALL,
}


def spent_until(run: SeedRun, score: float) -> tuple[float, float] | None:
    """Operations and uplink bytes when the validation score first came to this; None where it never did."""
    flops = sent = 0.0
    for line in run.rounds:
        flops += line["train_flops"]
        sent += line["uplink_bytes"]
        if (line["validation_score"] or 0) >= score:
            return flops, sent
    return None


def near(row: RowResults, reference: RowResults) -> tuple[float, float] | None:
    """Mean shares of what the reference took in all, operations and bytes, until the row was near where that ended."""
    shares = []
    for run, other in zip(row.runs, reference.runs, strict=True):
        score = next(
            line["validation_score"]
            for line in reversed(other.rounds)
            if line["validation_score"] is not None
        )
        if (spent := spent_until(run, score - NEAR)) is None:
            return None
        shares.append((spent[0] / other.result["train_flops"], spent[1] / other.result["uplink_bytes"]))
    flops, sent = zip(*shares, strict=True)
    return statistics.fmean(flops), statistics.fmean(sent)


def summary(comparison: Comparison) -> dict[str, dict[str, Any]]:
    reference = next(row for row in comparison.rows if row.name == ALL)
    made = {}
    for row in comparison.rows:
        mean, of_all = row.record["mean"], reference.record["mean"]
        reached = near(row, reference)
        made[row.name] = {
            "accuracy_global": mean["accuracy_global"],
            "accuracy_global_std": row.record["std"]["accuracy_global"],
            "accuracy_local": mean["accuracy_local"],
            "accuracy_local_std": row.record["std"]["accuracy_local"],
            "train_flops": mean["train_flops"],
            "uplink_bytes": mean["uplink_bytes"],
            "flops_share": mean["train_flops"] / of_all["train_flops"],
            "uplink_share": mean["uplink_bytes"] / of_all["uplink_bytes"],
            "near_flops_share": reached[0] if reached else None,
            "near_uplink_share": reached[1] if reached else None,
        }
    return made


def table(made: dict[str, dict[str, Any]]) -> str:
    head = [
        "blocks",
        "everyone's",
        "own",
        "TFLOP",
        "of all",
        "uplink MB",
        "of all",
        "near: TFLOP",
        "near: uplink",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, row in made.items():
        ends = [
            f"{share:.0%}" if (share := row[f"near_{what}_share"]) is not None else "never"
            for what in ("flops", "uplink")
        ]
        accuracy = [
            f"{row[key]:.3f} ± {row[f'{key}_std']:.3f}" for key in ("accuracy_global", "accuracy_local")
        ]
        cost = [
            f"{row['train_flops'] / 1e12:.2f}",
            f"{row['flops_share']:.0%}",
            f"{row['uplink_bytes'] / 1e6:.1f}",
            f"{row['uplink_share']:.0%}",
        ]
        lines.append(
            "| "
            + " | ".join([{ALL: "all", "fedavg-sal": "by plateau"}.get(name, name), *accuracy, *cost, *ends])
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder that holds banking77/; default: the embedded corpus"
    )
    parser.add_argument("--limit", type=int, help="messages of each split at most")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    given = parser.parse_args()
    example, keys = "assistant", [f"compare={json.dumps(ROWS)}", "engine.workers=1"]
    if given.data:
        example = "banking77"
        keys += [f"data.source={given.data.resolve() / 'banking77'}", "evaluation.everyone=null"]
    name = example
    if given.limit:
        name, keys = f"{example}-{given.limit}", [*keys, f"data.limit={given.limit}"]
    with observer(quiet=False) as watching:
        compare(
            load_config(ROOT / "examples" / f"{example}.yaml", keys),
            out=ROOT / "runs" / "sal" / name,
            observer=watching,
        )
    made = summary(read_comparison(ROOT / "runs" / "sal" / name))
    print(table(made))
    if given.write:
        splice(PAGE, "table sal", table(made))
    print(json.dumps(made))


if __name__ == "__main__":
    main()
