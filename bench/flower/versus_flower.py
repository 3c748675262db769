"""The same federated fine-tuning in fedms and in Flower with PEFT, as whole processes.

    python bench/flower/versus_flower.py --data DATA --flower-python PYTHON         # 20 minutes on 2 cores
    python bench/flower/versus_flower.py --data DATA --flower-python PYTHON --write # and write the table

DATA holds banking77/. Flower needs older versions of protobuf, typer, rich and packaging than fedms is tested
with. So Flower has an environment of its own, and PYTHON is .venv-flower/bin/python:

    python3 -m venv .venv-flower && .venv-flower/bin/pip install "$(grep ^torch== constraints.txt)"
    .venv-flower/bin/pip install -r bench/flower/flower-requirements.txt

For each seed, three programs run in alternating order: Flower (flower_baseline.py); fedms with all blocks
(`fedavg`, the same work); fedms with sparse activation (`fedavg-sal`, its own first stage). All have the same
clients, rows, cohorts, rounds, epochs and batch size. Each is measured from start to end: imports, loading,
training, the test of the one model on the whole test split, and for fedms the report. The last line of output
is a JSON object.
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # bench/, whose scripts share common/

from common.machine import with_machine
from common.measure import measured
from common.pages import PERFORMANCE, markdown_table, splice

BASELINE = Path(__file__).parent / "flower_baseline.py"
FLOWER, SAME_WORK, SPARSE = "Flower with PEFT", "fedms, the same work", "fedms, sparsely activated"
PROGRAMS = (FLOWER, SAME_WORK, SPARSE)
RATE = 2e-3
"""Learning rate of AdamW for LoRA and a head that starts from zero. SPARSE keeps the defaults of fedms."""
EVERYONE = 250
"""Test samples of everyone's data, enough to see that all clients have the same model."""
TIMEOUT = 7200


@dataclass(frozen=True)
class Row:
    """One run of one program."""

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
    """The keys that both fedms programs share; all others have their default."""
    return {
        "seed": seed,
        "model": {"name": model},
        "data": {"source": str(data)},
        "partition": {"clients": clients, "alpha": 0.1},
        "federation": {"cohort": cohort, "rounds_global": rounds, "rounds_local": 0},
        # The own test splits of all clients together are the whole test split.
        "evaluation": {"everyone": EVERYONE},
    }


def fedms_config(common: Mapping[str, Any], program: str) -> dict[str, Any]:
    """The config of one of the fedms programs."""
    if program == SAME_WORK:  # as in Flower: a head of zeros, and no validation before the end
        rounds = common["federation"]["rounds_global"]
        training = {"batch_size": 32, "learning_rate": RATE, "head_learning_rate": RATE}
        rates = {"training": training, "head": {"kind": "linear"}}
        return {
            **common,
            **rates,
            "method": "fedavg",
            "evaluation": {**common["evaluation"], "every": rounds},
        }
    return {**common, "method": "fedavg-sal"}


def copy_data(source: str, limit: int | None, seed: int, folder: Path) -> None:
    """Write the data set, or a part of it, as CSV files for both sides: row i of fedms is line i."""
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
    """The training rows of each client and the cohort of each round, as fedms will choose them."""
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
    """The contents of WORK.json for flower_baseline.py."""
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
    """The JSON object on the last line of a program's output.

    Raises:
        FedmsError: The last line is no JSON object.
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
    """Accuracy on the whole test split of the one model that all clients have.

    `tests` is the number of own test samples by client.

    Raises:
        FedmsError: The models of the clients differ.
    """
    found = {client["accuracy_global"] for client in result["per_client"]}
    if len(found) != 1:
        raise FedmsError(f"method {result['method']}: the clients' models differ on the same test data")
    right: float = sum(client["accuracy_local"] * tests[client["name"]] for client in result["per_client"])
    return right / sum(tests.values())


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Ratios Flower / fedms of wall time, processor time and memory, and differences of accuracy.

    Ratios are medians over seeds, wall time with its range. Differences (fedms minus Flower) are means.
    """
    by = {(row.program, row.seed): row for row in rows}
    seeds = sorted({row.seed for row in rows})
    found: dict[str, Any] = {}
    for name, program, difference in (
        ("same_work_ratio", SAME_WORK, "accuracy_difference_same_work"),
        ("wall_time_ratio", SPARSE, "accuracy_difference"),
    ):
        pairs = [(by[FLOWER, seed], by[program, seed]) for seed in seeds]
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
    """As Markdown: medians over seeds, except accuracy, which is a mean."""
    lines = []
    for program, ratio in zip(PROGRAMS, (None, "same_work_ratio", "wall_time_ratio"), strict=True):
        mine = [row for row in rows if row.program == program]
        seconds = statistics.median(row.seconds for row in mine)
        faster = "–"
        if ratio:
            faster = "{:.1f} ({:.1f} … {:.1f})".format(found[ratio], *found[f"{ratio}_range"])
        accuracy = [row.accuracy for row in mine]
        spread = f" ± {statistics.stdev(accuracy):.3f}" if len(accuracy) > 1 else ""
        peak = statistics.median(row.peak_bytes for row in mine) / 1e9
        mean = f"{statistics.mean(accuracy):.3f}{spread}"
        lines.append([program, f"{seconds:.0f}", faster, mean, f"{peak:.1f}"])
    samples = statistics.mean(row.samples for row in rows)
    seeds = ", ".join(map(str, found["seeds"]))
    about = f"Seeds {seeds}; {samples:.0f} samples trained on, as a mean over seeds."
    head = ["program", "wall time s", "faster by", "accuracy", "peak memory GB"]
    return f"{markdown_table(head, lines)}\n\n{about}"


def run_flower(
    python: Path, folder: Path, told: Mapping[str, Any], seed: int, versions: dict[str, str]
) -> Row:
    path = folder / "work.json"
    path.write_text(json.dumps(told))
    took = measured([python, BASELINE, path], TIMEOUT, environment())
    found = last_line(took.output)
    versions |= found["versions"]
    return Row(
        FLOWER,
        seed,
        took.seconds,
        took.processor_seconds,
        found["accuracy"],
        found["samples"],
        took.peak_bytes,
        took.load_before,
    )


def trained_samples(run: Path, planned: Mapping[str, Any]) -> int:
    """Number of samples that a run of fedms trained on, by the cohorts of its metrics."""
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


def run_fedms(program: str, folder: Path, config: Mapping[str, Any], planned: Mapping[str, Any]) -> Row:
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
    """The environment without OMP_NUM_THREADS, so that each program uses its default number of threads."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {
        "HF_HUB_OFFLINE": "1"
    }


def compare(
    given: argparse.Namespace, seed: int, turn: int, folder: Path, versions: dict[str, str]
) -> list[Row]:
    """Run all programs with one seed; each turn begins with another program."""
    copy_data(str(given.data.resolve() / "banking77"), given.limit, seed, folder)
    common = settings(seed, folder, "minilm", given.clients, given.cohort, given.rounds)
    world = open_world(load_config(fedms_config(common, SAME_WORK)))
    planned = plan(world)
    samples = sum(len(planned["clients"][client]) for cohort in planned["cohorts"] for client in cohort)
    rows = []
    for program in PROGRAMS[turn % 3 :] + PROGRAMS[: turn % 3]:
        if program == FLOWER:
            row = run_flower(
                given.flower_python, folder, work(world.config, planned, given.actors), seed, versions
            )
        else:
            row = run_fedms(program, folder, fedms_config(common, program), planned)
        if row.samples != samples:
            raise FedmsError(
                f"{program}, seed {seed}: trained on {row.samples} samples instead of the planned {samples}"
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
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas; default: 0,1,2")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--cohort", type=int, default=10)
    parser.add_argument(
        "--actors",
        type=int,
        default=os.cpu_count(),
        help="number of Flower's actors, one thread each; default: the number of cores",
    )
    parser.add_argument(
        "--limit", type=int, help="use at most this many samples of each split, to try the script"
    )
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
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
        splice(PERFORMANCE, "table versus-flower", with_machine(table(rows, found)))
    about = describe_environment(load_config({}), worker_count(load_config({})))
    print(
        json.dumps({**found, "rows": [asdict(row) for row in rows], "flower": versions, "environment": about})
    )


if __name__ == "__main__":
    main()
