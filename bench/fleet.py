"""Measure time, memory and disk against the number of clients and the cohort, for docs/performance.md.

    python bench/fleet.py                            # 100, 1,000 and 10,000 clients, cohorts of 10 and 100
    python bench/fleet.py --clients 100,1000 --write # and write the table into the page

Each fleet is a new process. It runs method fedms on made-up sentences, about 20 for each client. The model is
a small random transformer, so that the figures show fedms and not the encoder; `--model minilm` takes the
embedded encoder. Start-up is the time from the start of the process to the first round of training: imports,
data, model, and the feature statistics of 100 clients. A round is the median round of the global stage, with
validation by the same 100 clients. Memory is that of all processes together. The last line of output is a
JSON object.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fedms
from common.machine import with_machine
from common.measure import measured
from common.pages import PERFORMANCE, splice
from fedms.config import load_config
from fedms.core.errors import FedmsError
from fedms.experiments.observers import Silent
from fedms.runs.environment import describe_environment

EACH, CLASSES, WORDS = 20, 20, 400
"""Sentences for each client; classes; words in the vocabulary."""
ASKED = 100
"""Clients that send feature statistics and validate, whatever the size of the fleet."""
CACHE = 64
"""Megabytes of memory for prefixes. The default of 2,048 would hide the memory of the clients themselves."""
RATIO_NAMES = {"peak_bytes": "memory", "disk_bytes": "disk"}
"""Field -> name of its ratio, for the fields that need another name."""
TIMEOUT = 7200


@dataclass(frozen=True)
class Fleet:
    """The cost of one fleet."""

    clients: int
    cohort: int
    load_seconds: float
    """From the start of the process until data, partition and model are loaded"""
    startup_seconds: float
    """From the start of the process to the first round: loading and the exchange of statistics"""
    round_seconds: float
    """Median round of the global stage"""
    end_seconds: float
    """Choice of the gate's scale, and the test of every client"""
    seconds: float
    processor_seconds: float
    peak_bytes: int
    disk_bytes: int


def write_sentences(path: Path, count: int) -> None:
    """Write sentences of made-up words; three words of each depend on its class."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(WORDS)]
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["text", "label"])
        for number in range(count):
            label = number % CLASSES
            telling = draw.choices(words[label * 4 : label * 4 + 4], k=3)
            text = [*telling, *draw.choices(words[CLASSES * 4 :], k=draw.randint(3, 9))]
            draw.shuffle(text)
            lines.writerow([" ".join(text), f"class-{label}"])


def write_model(folder: Path) -> None:
    """Write a random BERT of two blocks with these words as its vocabulary."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(WORDS))]
    tokenizer = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    torch.manual_seed(0)
    transformers.BertModel(
        transformers.BertConfig(**sizes, vocab_size=len(names), max_position_embeddings=64)
    ).save_pretrained(folder)


def settings(
    source: Path, model: str, clients: int, cohort: int, rounds: int, workers: int
) -> dict[str, Any]:
    """The experiment of one fleet: method fedms, a few rounds."""
    return {
        "method": "fedms",
        "model": {"name": model},
        "data": {"source": str(source)},
        "partition": {"clients": clients, "rule": "equal"},
        "federation": {"cohort": cohort, "cohort_local": cohort, "rounds_global": rounds, "rounds_local": 1},
        "statistics": {"clients": min(ASKED, clients)},
        "evaluation": {"clients": min(ASKED, clients), "everyone": 200},
        "engine": {"workers": workers},
        "cache": {"memory_mb": CACHE},
    }


class Clock(Silent):
    """Records the system time at the end of each part of a run."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def begin(self, config: Any, facts: dict[str, Any]) -> None:
        self.times["loaded"] = time.time()

    def round_done(self, record: dict[str, Any]) -> None:
        self.times[f"{record['stage']} {record['round']}"] = time.time()


def run_one(config: Mapping[str, Any], out: Path) -> None:
    """Run one fleet in this process, and print the recorded times as the last line."""
    clock = Clock()
    fedms.run(config, out, observer=clock, report=False)
    print(json.dumps(clock.times), flush=True)


def run_fleet(folder: Path, config: Mapping[str, Any]) -> Fleet:
    """Measure one fleet in a new process."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        out = Path(place) / "run"
        began = time.time()
        took = measured([sys.executable, __file__, "--run", json.dumps(config), "--out", out], TIMEOUT)
        times = json.loads(took.output.strip().splitlines()[-1])
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        disk = sum(path.stat().st_blocks * 512 for path in out.rglob("*"))
    rounds = [line["seconds"] for line in lines if line["stage"] == "global"]
    federation, partition = config["federation"], config["partition"]
    return Fleet(
        clients=partition["clients"],
        cohort=federation["cohort"],
        load_seconds=round(times["loaded"] - began, 3),
        startup_seconds=round(times["statistics 0"] - began, 3),
        round_seconds=statistics.median(rounds),
        end_seconds=next(line["seconds"] for line in lines if line["stage"] == "end"),
        seconds=round(took.seconds, 3),
        processor_seconds=took.processor_seconds,
        peak_bytes=took.peak_bytes,
        disk_bytes=disk,
    )


def summary(fleets: Sequence[Fleet]) -> dict[str, float]:
    """Ratios of largest to smallest fleet, and of largest to smallest cohort, if both were measured."""
    by = {(fleet.clients, fleet.cohort): fleet for fleet in fleets}
    few, many = (choose(fleet.clients for fleet in fleets) for choose in (min, max))
    small, large = (choose(fleet.cohort for fleet in fleets) for choose in (min, max))
    found = {}
    if few < many and {(few, small), (many, small)} <= by.keys():
        first, last = by[few, small], by[many, small]
        for name in ("peak_bytes", "startup_seconds", "round_seconds", "end_seconds", "disk_bytes"):
            ratio = getattr(last, name) / getattr(first, name)
            found[f"{RATIO_NAMES.get(name, name)}_ratio_{many}_to_{few}"] = round(ratio, 3)
    for clients in sorted({fleet.clients for fleet in fleets}):
        if small < large and {(clients, small), (clients, large)} <= by.keys():
            ratio = by[clients, large].round_seconds / by[clients, small].round_seconds
            found[f"round_seconds_ratio_cohort_{large}_to_{small}_of_{clients}"] = round(ratio, 3)
    return found


def table(fleets: Sequence[Fleet]) -> str:
    """As Markdown."""
    lines = [
        "| clients | cohort | start-up s | a round s | the end s | peak memory MB | disk MB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for f in sorted(fleets, key=lambda each: (each.clients, each.cohort)):
        times = f"{f.startup_seconds:.1f} | {f.round_seconds:.2f} | {f.end_seconds:.1f}"
        lines.append(
            f"| {f.clients:,} | {f.cohort} | {times} | {f.peak_bytes / 1e6:.0f} | {f.disk_bytes / 1e6:.0f} |"
        )
    return "\n".join(lines)


def measure_all(given: argparse.Namespace, folder: Path) -> list[Fleet]:
    """Measure all fleets, one after the other."""
    model = given.model
    if model is None:
        model = str(folder / "model")
        write_model(folder / "model")
    fleets = []
    for clients, cohort in itertools.product(given.clients, given.cohorts):
        source = folder / f"{clients}.csv"
        if not source.exists():
            write_sentences(source, clients * EACH)
        fleet = run_fleet(folder, settings(source, model, clients, cohort, given.rounds, given.workers))
        print(json.dumps(asdict(fleet)), flush=True)
        fleets.append(fleet)
    return fleets


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clients",
        type=numbers,
        default=[100, 1000, 10000],
        help="comma-separated; default: 100,1000,10000",
    )
    parser.add_argument("--cohorts", type=numbers, default=[10, 100], help="comma-separated; default: 10,100")
    parser.add_argument("--rounds", type=int, default=3, help="of the global stage; default: 3")
    parser.add_argument("--workers", type=int, default=1, help="default: 1, so one process holds everything")
    parser.add_argument("--model", help="as model.name; default: a small random one")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run_one(json.loads(given.run), given.out)
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            fleets = measure_all(given, Path(folder))
    except FedmsError as error:
        sys.exit(f"error: {error}")
    if given.write:
        splice(PERFORMANCE, "table fleet", with_machine(table(fleets)))
    about = describe_environment(load_config({}), given.workers)
    print(
        json.dumps({**summary(fleets), "fleets": [asdict(fleet) for fleet in fleets], "environment": about})
    )


if __name__ == "__main__":
    main()
