"""The results table: seven methods and a fixed small k, on the same partitions and the same budget, over seeds.

    python bench/results.py banking77 --name banking77-alpha0.5 --set partition.alpha=0.5 --set data.source=../shared/data/banking77
    python bench/results.py --render          # docs/results.md and its pictures, from the runs that are there

Runs lie in runs/results/SETTING/METHOD-SEED; what is finished is not run again. A first stage that two methods declare
alike is trained once and its cost counted in both. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from fedms.config import load
from fedms.experiment import run
from fedms.progress import observer

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "results"
PAGES = (ROOT / "docs" / "results.md", ROOT / "README.md")
METHODS = ("statistics", "fedavg-sal", "fedms", "mixture-constant", "fedavg", "fedavg-finetune", "sal-fixed", "local")
FIRST_STAGE = {"fedavg-finetune": "fedavg", "fedms": "fedavg-sal", "mixture-constant": "fedavg-sal"}
VARIANTS = {"sal-fixed": ("fedavg-sal", ["activation.rule=fixed"])}
"""A row that is a method with other settings."""
COLUMNS = {
    "accuracy_local": ("own data", 1),
    "accuracy_local_worst": ("worst tenth", 1),
    "accuracy_global": ("everyone's", 1),
    "gate_global_share": ("g_G on own", 1),
    "gate_global_share_everyone": ("g_G on everyone's", 1),
    "uplink_bytes": ("up, MB", 1e-6),
    "downlink_bytes": ("down, MB", 1e-6),
    "train_flops": ("TFLOP", 1e-12),
    "seconds": ("seconds", 1),
}


def run_all(setting: str, example: str, overrides: list[str], methods: list[str], seeds: list[int]) -> None:
    """Every method for every seed, those first whose first stage others reuse."""
    for seed in seeds:
        for row in methods:
            out = RUNS / setting / f"{row}-{seed}"
            if (out / "result.json").exists():
                continue
            if out.exists():
                raise SystemExit(f"{out}: there, but not finished; remove it")
            method, more = VARIANTS.get(row, (row, []))
            config = load(ROOT / "examples" / f"{example}.yaml", [*overrides, *more, f"seed={seed}", f"method={method}"])
            first = RUNS / setting / f"{FIRST_STAGE[row]}-{seed}" if row in FIRST_STAGE else None
            print(f"== {setting} {row} seed {seed}", flush=True)
            with observer(quiet=False) as watching:
                run(config, out, watching, reuse=first)


def collect(setting: str) -> dict[str, list[dict[str, Any]]]:
    """The finished results of a setting by row, in the order of METHODS."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in METHODS:
        paths = sorted((RUNS / setting).glob(f"{row}-[0-9]*/result.json"))
        if paths:
            found[row] = [json.loads(path.read_text()) for path in paths]
    return found


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    made: dict[str, Any] = {"seeds": [result["seed"] for result in results]}
    for key in COLUMNS:
        values = [result[key] for result in results if result.get(key) is not None]
        if values:
            made[key] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
    return made


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown, mean ± standard deviation."""
    lines = ["| method | " + " | ".join(title for title, _ in COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row, values in rows.items():
        cells = [_cell(key, values.get(key), scale) for key, (_, scale) in COLUMNS.items()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(key: str, value: dict[str, float | None] | None, scale: float) -> str:
    if value is None or value["mean"] is None:
        return "–"
    if scale == 1 and key != "seconds":
        spread = "" if value["std"] is None else f" ± {value['std']:.3f}"
        return f"{value['mean']:.3f}{spread}"
    return f"{value['mean'] * scale:.1f}" if value["mean"] * scale < 100 else f"{value['mean'] * scale:.0f}"


def frontier(results: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    """(prior, accuracy_local, accuracy_global), means over seeds."""
    lines = [result["frontier"] for result in results]
    return [
        (points[0]["prior"], statistics.fmean(p["accuracy_local"] for p in points), statistics.fmean(p["accuracy_global"] for p in points))
        for points in zip(*lines, strict=True)
    ]


def draw(setting: str, found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The frontiers: curves over the prior, points for methods without one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    axes = figure.subplots()
    colours = {"fedms": "#D55E00", "mixture-constant": "#0072B2", "statistics": "#009E73"}
    markers = dict(zip([row for row in found if row not in colours], "DsP^vX", strict=False))
    lowest = min(world for row in ("fedms", "mixture-constant") if row in found for _, _, world in frontier(found[row])) - 0.05
    for row, results in found.items():
        if curve := frontier(results):
            _, local, world = zip(*curve, strict=True)
            axes.plot(local, world, "o-", ms=4, lw=2.2 if row == "fedms" else 1.4, label=row, color=colours.get(row))
        else:
            values = summary(results)
            at = values["accuracy_local"]["mean"], values["accuracy_global"]["mean"]
            below = f" (not shown: {at[0]:.2f}, {at[1]:.2f})" if at[1] < lowest else ""
            axes.plot(*at, marker=markers[row], ls="", ms=7, color="#555555", markerfacecolor="none", label=row + below)
    axes.set_xlabel("accuracy on the client's own test data")
    axes.set_ylabel("accuracy on everyone's test data")
    axes.set_title(
        f"{setting}: mean over clients and {len(next(iter(found.values())))} seeds; curves run over the prior 0 … 1", fontsize=10
    )
    axes.set_ylim(bottom=lowest)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", nargs="?", choices=["assistant", "banking77", "pacs"])
    parser.add_argument("--name", help="of the setting; default: the example's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in fedms run; repeatable")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--render", action="store_true", help="write the tables and pictures of what is there into the docs")
    given = parser.parse_args()
    if given.example:
        seeds = [int(seed) for seed in given.seeds.split(",")]
        run_all(given.name or given.example, given.example, given.set, given.methods.split(","), seeds)
    made = {}
    for folder in sorted(path for path in RUNS.glob("*") if path.is_dir()):
        if not (found := collect(folder.name)):
            continue
        made[folder.name] = {row: summary(results) for row, results in found.items()}
        text = table(made[folder.name])
        print(f"\n{folder.name}\n{text}")
        if given.render:
            draw(folder.name, found, ROOT / "docs" / "pictures" / f"frontier-{folder.name}.png")
            for page in PAGES:
                splice(page, f"table {folder.name}", text)
    print(json.dumps(made))


def splice(page: Path, name: str, text: str) -> None:
    """Put the text between the page's marks of that name, if it has them."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, mark, rest = page.read_text(encoding="utf-8").partition(begin)
    if mark:
        page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
