"""Check whether two versions of fedms give the same bits: digests of all arrays and results of several runs.

    python bench/same_bits.py record before.json [--data DATA] [--fedms PATH/TO/fedms]
    python bench/same_bits.py record after.json  [--data DATA]
    python bench/same_bits.py compare before.json after.json

The runs are examples/assistant.yaml with several methods and seed 0, and a small PACS run if DATA has PACS.
Each run is a process of its own, so `--fedms` can name the command of any version. `compare` compares all
arrays of server and clients, and result.json without times and memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from common.pages import ROOT

METHODS = ("fedms", "fedavg-finetune", "fedalt", "feddpa", "promptfl", "statistics")
MEASURED = ("seconds", "evaluation_seconds", "peak_memory_bytes")
"""Keys of result.json that differ between two runs of the same version."""
PACS = (
    "data.limit=240",
    "partition.clients=4",
    "federation.cohort=2",
    "federation.rounds_global=2",
    "federation.rounds_local=1",
)


def runs(data: Path | None) -> dict[str, list[str]]:
    """Arguments of `fedms run`, by the name of the run."""
    found = {
        f"assistant {method}": ["examples/assistant.yaml", "--set", f"method={method}"] for method in METHODS
    }
    if data is not None and (data / "pacs").is_dir():
        sets = (*PACS, f"data.source={data / 'pacs'}", f"model.name={data / 'vit-tiny-patch16-224'}")
        found["pacs fedms"] = ["examples/pacs.yaml", *(part for each in sets for part in ("--set", each))]
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every array, by file and name."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        for name, array in sorted(load_file(path).items()):
            content = f"{array.dtype} {array.shape}".encode() + array.tobytes()
            found[f"{path.relative_to(folder)} {name}"] = hashlib.sha256(content).hexdigest()
    return found


def record(out: Path, data: Path | None, command: str) -> None:
    """Run everything and write results and digests to `out`."""
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, arguments in runs(data).items():
            folder = Path(place) / name.replace(" ", "-")
            subprocess.run(
                [command, "run", *arguments, "--quiet", "--out", str(folder)],
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            said[name] = {"result": result, "environment": environment, "arrays": digests(folder)}
            accuracies = f"{result['accuracy_local']:.4f} / {result['accuracy_global']:.4f}"
            print(f"{name}: {len(said[name]['arrays'])} arrays, {accuracies}")
            shutil.rmtree(folder)
    out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print the differences, and return their number."""
    differences = 0
    for name, old in before.items():
        new = after.get(name, {"result": {}, "arrays": {}})
        keys = sorted({*old["result"], *new["result"]} - {*MEASURED})
        wrong = [key for key in keys if old["result"].get(key) != new["result"].get(key)]
        wrong += [
            key
            for key in sorted({*old["arrays"], *new["arrays"]})
            if old["arrays"].get(key) != new["arrays"].get(key)
        ]
        differences += len(wrong)
        outcome = f"{len(wrong)} differ: {', '.join(wrong[:5])}" if wrong else "equal"
        print(f"{name}: {len(old['arrays'])} arrays, {outcome}")
    return differences


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--data", type=Path)
    recording.add_argument(
        "--fedms",
        default=str(Path(sys.executable).with_name("fedms")),
        help="the command; default: this environment's",
    )
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.command == "record":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        record(asked.out, asked.data and asked.data.resolve(), asked.fedms)
    else:
        read = (json.loads(path.read_text(encoding="utf-8")) for path in (asked.before, asked.after))
        sys.exit(1 if compare(*read) else 0)


if __name__ == "__main__":
    main()
