"""The same federated fine-tuning in fedms and in Flower with PEFT, as whole processes: docs/performance.md's first table.

    python bench/versus_flower.py --data DATA --flower-python .venv-flower/bin/python            # about 20 minutes on 2 quiet cores
    python bench/versus_flower.py --data DATA --flower-python .venv-flower/bin/python --write    # ... and the table into the page

DATA holds banking77/. Flower wants older versions of protobuf, typer, rich and packaging than fedms is tested with, so it has an
environment of its own:

    python3 -m venv .venv-flower && .venv-flower/bin/pip install "$(grep ^torch== constraints.txt)"
    .venv-flower/bin/pip install -r bench/flower-requirements.txt

Three programs for each seed, in turning order: Flower (bench/flower_baseline.py); fedms with all blocks (`fedavg`: the same work);
fedms as its first stage is done (`fedavg-sal`). They have the same clients, rows, cohorts, rounds, epochs and batch size. Each is
measured from its start to its end: imports, loading, training, the test of the one model on the whole test split, and for fedms the report.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedms.config import Config, load_config
from fedms.core.errors import FedmsError
from fedms.data import sources
from fedms.engines.local import worker_count
from fedms.federation.methods import of
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import World, open_world
from fedms.model.checkpoints import locate
from fedms.runs.environment import describe_environment
from measure import measured
from pages import ROOT, splice

PAGE = ROOT / "docs" / "performance.md"
BASELINE = Path(__file__).parent / "flower_baseline.py"
THEIRS, SAME, SPARSE = "Flower with PEFT", "fedms, the same work", "fedms, sparsely activated"
PROGRAMS = (THEIRS, SAME, SPARSE)
RATE = 2e-3
"""AdamW, for LoRA and a head that starts from zero; sparsely activated, fedms keeps its own defaults."""
SOME = 250
"""Test samples on which all clients' models are seen to be one."""
TIMEOUT = 7200


@dataclass(frozen=True)
class Row:
    """One program's run with one seed."""

    program: str
    seed: int
    seconds: float
    processor_seconds: float
    accuracy: float
    """Of the one global model, on the whole test split"""
    samples: int
    """Trained on, over all rounds"""
    peak_bytes: int
    load_before: float


def settings(seed: int, data: Path, model: str, clients: int, cohort: int, rounds: int) -> dict[str, Any]:
    """What both of our programs are told; all else is fedms's default."""
    return {
        "seed": seed,
        "model": {"name": model},
        "data": {"source": str(data)},
        "partition": {"clients": clients, "alpha": 0.1},
        "federation": {"cohort": cohort, "rounds_global": rounds, "rounds_local": 0},
        "evaluation": {"everyone": SOME},  # the clients' own test splits together are the whole one
    }


def ours(common: Mapping[str, Any], program: str) -> dict[str, Any]:
    """The config of one of our programs."""
    if program == SAME:  # like Flower, it starts with a head of zeros and looks at nothing before the end
        rounds = common["federation"]["rounds_global"]
        rates = {"training": {"learning_rate": RATE, "head_learning_rate": RATE}, "head": {"kind": "linear"}}
        return {
            **common,
            **rates,
            "method": "fedavg",
            "evaluation": {**common["evaluation"], "every": rounds},
        }
    return {**common, "method": "fedavg-sal"}


def copy_data(source: str, limit: int | None, seed: int, folder: Path) -> None:
    """The data set, or a part of it, as the two files that both sides read: row i of fedms is line i of the file."""
    data = sources.load(load_config({"data": {"source": source, "limit": limit}}).data, seed)
    if data.is_test is None:
        raise FedmsError(f"{source}: has no test split, on which one model could be judged")
    for split, wanted in (("train", False), ("test", True)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["text", "category"])
            lines.writerows(
                (text, data.class_names[label])
                for text, label, test in zip(data.inputs, data.labels, data.is_test, strict=True)
                if test == wanted
            )


def plan(world: World) -> dict[str, Any]:
    """Who holds which training rows, and who is asked in each round, as fedms will have it."""
    config = world.config
    names = list(world.clients)
    server = Server(recipe_for(config, of(config)), world.backbone, names, world.ranks)
    stage = server.method.stages[0]
    cohorts = [server.sampling.cohort(stage, number) for number in range(1, server.recipe.rounds(stage) + 1)]
    return {
        "clients": [client.train.tolist() for client in world.partition.clients],
        "tests": {client.name: len(client.test) for client in world.partition.clients},
        "cohorts": [[names.index(name) for name in cohort] for cohort in cohorts],
        "classes": list(world.dataset.class_names),
    }


def work(config: Config, planned: Mapping[str, Any], actors: int) -> dict[str, Any]:
    """What bench/flower_baseline.py is told."""
    training, lora = config.training, config.lora
    return {
        **planned,
        "seed": config.seed,
        "data": config.data.source,
        "model": locate(config.model.name),
        "max_length": config.model.max_length,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "batch_size": training.batch_size,
        "learning_rate": RATE,
        "actors": actors,
    }


def last_line(output: str) -> dict[str, Any]:
    """The JSON object that is the last line a program printed.

    Raises:
        FedmsError: it is none.
    """
    lines = output.strip().splitlines()
    try:
        found = json.loads(lines[-1] if lines else "")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FedmsError(
            f"the last line is no JSON object: {lines[-1][:200] if lines else 'nothing was printed'}"
        )
    return found


def shared_accuracy(result: Mapping[str, Any], tests: Mapping[str, int]) -> float:
    """A result's accuracy on the whole test split, of the one model that all clients have; `tests` are their numbers of test samples.

    Raises:
        FedmsError: they do not have one model.
    """
    found = {client["accuracy_global"] for client in result["per_client"]}
    if len(found) != 1:
        raise FedmsError(f"method {result['method']}: the clients' models differ on the same test data")
    right: float = sum(client["accuracy_local"] * tests[client["name"]] for client in result["per_client"])
    return right / sum(tests.values())


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Ratios of wall time (theirs by ours) by seed, their median and range; our accuracy less theirs, its mean over seeds."""
    by = {(row.program, row.seed): row for row in rows}
    seeds = sorted({row.seed for row in rows})
    found: dict[str, Any] = {}
    for name, program, difference in (
        ("same_work_ratio", SAME, "accuracy_difference_same_work"),
        ("wall_time_ratio", SPARSE, "accuracy_difference"),
    ):
        pairs = [(by[THEIRS, seed], by[program, seed]) for seed in seeds]
        ratios = [theirs.seconds / mine.seconds for theirs, mine in pairs]
        found[name] = round(statistics.median(ratios), 3)
        found[f"{name}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        found[difference] = round(
            statistics.mean(mine.accuracy - theirs.accuracy for theirs, mine in pairs), 4
        )
        processor = statistics.median(
            theirs.processor_seconds / mine.processor_seconds for theirs, mine in pairs
        )
        found[name.replace("_ratio", "_processor_ratio")] = round(processor, 3)
        memory = statistics.median(theirs.peak_bytes / mine.peak_bytes for theirs, mine in pairs)
        found[name.replace("_ratio", "_memory_ratio")] = round(memory, 3)
    return {**found, "seeds": seeds}


def table(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """As Markdown: medians over seeds, but for accuracy, which is a mean."""
    lines = ["| program | wall time s | faster by | accuracy | peak memory GB |", "|---|---:|---:|---:|---:|"]
    for program, ratio in zip(PROGRAMS, (None, "same_work_ratio", "wall_time_ratio"), strict=True):
        mine = [row for row in rows if row.program == program]
        seconds = statistics.median(row.seconds for row in mine)
        faster = "{:.1f} ({:.1f} … {:.1f})".format(found[ratio], *found[f"{ratio}_range"]) if ratio else "–"
        accuracy = [row.accuracy for row in mine]
        spread = f" ± {statistics.stdev(accuracy):.3f}" if len(accuracy) > 1 else ""
        peak = statistics.median(row.peak_bytes for row in mine) / 1e9
        lines.append(
            f"| {program} | {seconds:.0f} | {faster} | {statistics.mean(accuracy):.3f}{spread} | {peak:.1f} |"
        )
    samples = statistics.mean(row.samples for row in rows)
    return "\n".join(
        [
            *lines,
            "",
            f"Seeds {', '.join(map(str, found['seeds']))}; {samples:.0f} samples trained on, as a mean over seeds.",
        ]
    )


def run_theirs(
    python: Path, folder: Path, told: Mapping[str, Any], seed: int, versions: dict[str, str]
) -> Row:
    path = folder / "work.json"
    path.write_text(json.dumps(told))
    took = measured([python, BASELINE, path], TIMEOUT, environment())
    found = last_line(took.output)
    versions |= found["versions"]
    return Row(
        THEIRS,
        seed,
        took.seconds,
        took.processor_seconds,
        found["accuracy"],
        found["samples"],
        took.peak_bytes,
        took.load_before,
    )


def trained_samples(run: Path, planned: Mapping[str, Any]) -> int:
    """How many samples a run of ours has trained on, by the cohorts that it says it had."""
    result, lines = (
        json.loads((run / "result.json").read_text()),
        (run / "metrics.jsonl").read_text().splitlines(),
    )
    held = dict(zip(result["partition"]["clients"], map(len, planned["clients"]), strict=True))
    return sum(
        held[client]
        for line in map(json.loads, lines)
        if line["stage"] == "global"
        for client in line["cohort"]
    )


def run_ours(program: str, folder: Path, config: Mapping[str, Any], planned: Mapping[str, Any]) -> Row:
    path = folder / "config.json"
    path.write_text(json.dumps(config))  # JSON is YAML
    with tempfile.TemporaryDirectory(dir=folder) as place:
        out = Path(place) / "run"
        took = measured(
            [sys.executable, "-m", "fedms.cli", "run", path, "--quiet", "--out", out], TIMEOUT, environment()
        )
        result = json.loads((out / "result.json").read_text())
        trained, accuracy = trained_samples(out, planned), shared_accuracy(result, planned["tests"])
    return Row(
        program,
        config["seed"],
        took.seconds,
        took.processor_seconds,
        accuracy,
        trained,
        took.peak_bytes,
        took.load_before,
    )


def environment() -> dict[str, str]:
    """Without anything that says how many threads to use: each program does as it does by default."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {
        "HF_HUB_OFFLINE": "1"
    }


def compare(
    given: argparse.Namespace, seed: int, turn: int, folder: Path, versions: dict[str, str]
) -> list[Row]:
    """All programs with one seed, the first of them another one each turn."""
    copy_data(str(given.data.resolve() / "banking77"), given.limit, seed, folder)
    common = settings(seed, folder, "minilm", given.clients, given.cohort, given.rounds)
    world = open_world(load_config(ours(common, SAME)))
    planned = plan(world)
    samples = sum(len(planned["clients"][client]) for cohort in planned["cohorts"] for client in cohort)
    rows = []
    for program in PROGRAMS[turn % 3 :] + PROGRAMS[: turn % 3]:
        if program == THEIRS:
            row = run_theirs(
                given.flower_python, folder, work(world.config, planned, given.actors), seed, versions
            )
        else:
            row = run_ours(program, folder, ours(common, program), planned)
        if row.samples != samples:
            raise FedmsError(
                f"{program}, seed {seed}: trained on {row.samples} samples, not on the {samples} that were planned"
            )
        print(json.dumps(asdict(row)), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77/")
    parser.add_argument(
        "--flower-python", type=Path, default=Path(sys.executable), help="interpreter of Flower's environment"
    )
    parser.add_argument("--seeds", default="0,1,2", help="between commas; default: 0,1,2")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--cohort", type=int, default=10)
    parser.add_argument(
        "--actors",
        type=int,
        default=os.cpu_count(),
        help="Flower's actors of one thread; default: one for each core",
    )
    parser.add_argument("--limit", type=int, help="so many samples of each split only, to try the script")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    given = parser.parse_args()
    given.flower_python = (
        given.flower_python.absolute()
    )  # not resolved: an environment's interpreter is a link
    rows: list[Row] = []
    versions: dict[str, str] = {}
    try:
        for turn, seed in enumerate(int(seed) for seed in given.seeds.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                rows += compare(given, seed, turn, Path(folder), versions)
    except FedmsError as error:
        sys.exit(f"error: {error}")
    found = summary(rows)
    if given.write:
        splice(PAGE, "table versus-flower", table(rows, found))
    about = describe_environment(load_config({}), worker_count(load_config({})))
    print(
        json.dumps({**found, "rows": [asdict(row) for row in rows], "flower": versions, "environment": about})
    )


if __name__ == "__main__":
    main()
