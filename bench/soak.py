"""Run thousands of rounds that lose nearly a third of the clients' answers: does anything pile up?

    python bench/soak.py                     # 2,000 rounds: minutes
    python bench/soak.py --rounds 100        # fewer rounds
    python bench/soak.py --deaths 0.01       # one answer in 100 ends its worker process (default: in 1,000)

The model is tiny and random. A quarter of the rounds belongs to the global stage, the rest to the local
stage, with two workers. A fifth of the asked clients raise an exception, and a tenth of the answers are
refused. Only clients of the second worker end their process, so the first worker can be watched over all
rounds. Memory is resident memory. Its slope is that of a straight line through the second half of the rounds.
The last line of output is a JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from common.pages import ROOT
from fedms import run
from fedms.config import Config, load_config
from fedms.experiments.observers import Silent

WORDS = [f"word{number}" for number in range(24)]
CLASSES = 3
CLIENTS = 20
"""Enough for every round to find clients that answer. A client that fails in a round always fails in it."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def make_model(folder: Path) -> None:
    """Write a random BERT of one narrow block with a vocabulary of whole words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 16,
    }
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=len(vocabulary))).save_pretrained(
        folder
    )


def make_texts(path: Path) -> None:
    """Write texts in which each class prefers its own words."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(CLIENTS * 24):
            label = number % CLASSES
            rows.writerow(
                [
                    " ".join(draw.choices(WORDS[8 * label : 8 * label + 8], k=4) + draw.choices(WORDS, k=2)),
                    f"class {label}",
                ]
            )


def make_failures(folder: Path, deaths: float) -> None:
    """Make clients fail in all workers that start from now on."""
    dying = [f"client-{number}" for number in range(1, CLIENTS, 2)]  # clients of the second worker
    rules: list[dict[str, Any]] = [
        {"how": "raise", "kind": "train", "drawn": [0.0, 0.2]},
        {"how": "lie", "kind": "train", "drawn": [0.2, 0.3]},
    ]
    rules += [
        {"how": "die", "kind": "train", "client": client, "drawn": [0.3, 0.3 + 2 * deaths]}
        for client in dying
    ]
    (folder / "rules.json").write_text(json.dumps(rules))
    (folder / "sitecustomize.py").write_text("import misbehaving\nmisbehaving.watch_imports()\n")
    places = [str(folder), str(ROOT / "tests" / "integration"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"FEDMS_TEST_RULES": str(folder / "rules.json"), "PYTHONPATH": os.pathsep.join(places)}


def settings(folder: Path, rounds: int) -> Config:
    values = {
        "model": {"name": str(folder / "model"), "max_length": 8},
        "data": {"source": str(folder / "texts.csv")},
        "partition": {"clients": CLIENTS, "alpha": 100.0},
        "federation": {
            "cohort": 3,
            "cohort_local": 3,
            "rounds_global": rounds // 4,
            "rounds_local": rounds - rounds // 4,
            "oversample": 1,
            "quorum": 2,
            "attempts": 6,
        },
        "gate": {"epochs": 1},
        "evaluation": {"every": 10},
        "engine": {"workers": 2},
    }
    return load_config(values)


def resident(pid: int | str) -> float:
    """Resident memory in megabytes; 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 1e6
    except OSError:
        return 0.0


def files_in(folder: Path) -> int:
    """How many files a folder and its sub-folders hold."""
    return sum(len(files) for _, _, files in os.walk(folder))


class Watch(Silent):
    """Records memory, open files and files on disk after each round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.noted: list[dict[str, float]] = []
        self.lost: Counter[str] = Counter()
        self.answers = 0

    def round_done(self, record: dict[str, Any]) -> None:
        """Record one row."""
        self.lost.update(failure["kind"] for failure in record["failures"])
        self.answers += len(record["cohort"]) if record["rounds"] else 0
        if not record["rounds"]:
            return
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        self.noted.append(
            {
                "run_mb": resident("self"),
                "worker_mb": resident(min(children, key=int)),
                "descriptors": len([*Path("/proc/self/fd").iterdir()]),
                "files": files_in(self.folder) - files_in(self.folder / "cache"),
                "cached": files_in(self.folder / "cache"),
                "seconds": record["seconds"],
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument(
        "--deaths", type=float, default=0.001, help="share of answers that end a worker process"
    )
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder / "model")
        make_texts(folder / "texts.csv")
        make_failures(folder, given.deaths)
        watch = Watch(folder / "run")
        run(settings(folder, given.rounds), folder / "run", observer=watch, report=False)
    half = len(watch.noted) // 2
    print(f"{'':14}{'first':>10}{'middle':>10}{'last':>10}{'most':>10}")
    for key in watch.noted[0]:
        values = [row[key] for row in watch.noted]
        print(
            f"{key:14}"
            + "".join(f"{value:10.4g}" for value in (values[0], values[half], values[-1], max(values)))
        )
    late = np.arange(half, len(watch.noted))
    slopes = {
        key: 1000 * float(np.polyfit(late, [row[key] for row in watch.noted[half:]], 1)[0])
        for key in ("run_mb", "worker_mb")
    }
    kept = {
        f"{key}_{when}": watch.noted[at][key]
        for key in ("descriptors", "files", "cached")
        for when, at in (("middle", half), ("last", -1))
    }
    told = {
        "rounds": len(watch.noted),
        "answers": watch.answers,
        "lost": dict(watch.lost),
        "mb_per_1000_rounds": slopes,
        **kept,
    }
    print(
        json.dumps(told | {"seconds": round(time.monotonic() - began, 1), "python": sys.version.split()[0]})
    )


if __name__ == "__main__":
    main()
