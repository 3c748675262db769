"""Compare sparse activation with all blocks, at equal rounds: accuracy, operations and bytes.

    python bench/sal.py --write                  # the embedded corpus, as in docs/performance.md
    python bench/sal.py --data DIR               # BANKING77, from DIR/banking77
    python bench/sal.py --data DIR --limit 2500  # with fewer messages

All rows have the same partition, cohorts, local steps, head and seeds. They differ only in their active
blocks. The comparison is stored in runs/sal/ and continues if interrupted. The columns *near* give the cost
up to the first round whose validation score is within half a point of the final score with all blocks. The
last line of output is a JSON object: means over seeds for each row, and shares of the cost with all blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from common.pages import PERFORMANCE, ROOT, markdown_table, splice
from fedms import compare
from fedms.config import load_config
from fedms.experiments.console import observer
from fedms.runs.reading.comparison import Comparison, RowResults, SeedRun, read_comparison

ALL = "fedavg"
NEAR = 0.005
"""Largest gap in validation score that counts as near."""
SAL = {"method": "fedavg-sal"}
ROWS = {
    "methods": [ALL, "fedavg-sal"],
    "variants": {
        "every 2 rounds": {**SAL, "activation.rule": "every", "activation.every": 2},
        "fixed 1 block": {**SAL, "activation.rule": "fixed", "activation.blocks": 1},
        "plateau": {**SAL, "activation.rule": "plateau"},
    },
    "seeds": [0, 1, 2],
    "baseline": ALL,
}


def spent_until(run: SeedRun, score: float) -> tuple[float, float] | None:
    """Operations and uplink bytes until the validation score reaches `score`; None if it never does."""
    flops = sent = 0.0
    for line in run.rounds:
        flops += line["train_flops"]
        sent += line["uplink_bytes"]
        if (line["validation_score"] or 0) >= score:
            return flops, sent
    return None


def near(row: RowResults, reference: RowResults) -> tuple[float, float] | None:
    """Operations and bytes until the row is near the reference's final score, as shares of its total cost."""
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
    rows = []
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
        label = {ALL: "all", "fedavg-sal": "fixed 2 blocks", "plateau": "by plateau"}.get(name, name)
        rows.append([label, *accuracy, *cost, *ends])
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder that holds banking77/; default: the embedded corpus"
    )
    parser.add_argument("--limit", type=int, help="at most this many messages of each split")
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/{PERFORMANCE.name}")
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
        splice(PERFORMANCE, "table sal", table(made))
    print(json.dumps(made))


if __name__ == "__main__":
    main()
