"""What a run comes to, less what may differ between two runs of one config: times and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedms.core.files import read_arrays

TIMES = ("seconds", "evaluation_seconds", "peak_memory_bytes", "sha256")
"""Keys of times, and of the digest of lines that hold them."""


def without_times(value: Any) -> Any:
    """The same without any times, wherever they are."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def state(folder: Path) -> dict[str, Any]:
    """All that server and clients keep, to the byte; of the server's checkpoints, which hold times, the bytes
    of each array.
    """
    found: dict[str, Any] = {}
    for path in folder.rglob("*.safetensors"):
        if path.name.startswith("state-") and path.parent.name == "server":
            arrays, meta = read_arrays(path)
            kept: Any = (
                {name: (array.dtype, array.shape, array.numpy().tobytes()) for name, array in arrays.items()},
                without_times(meta),
            )
        else:
            kept = path.read_bytes()
        found[str(path.relative_to(folder))] = kept
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """Everything in the folder of a finished run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "config": (folder / "config.yaml").read_text(),
        "result": without_times(json.loads((folder / "result.json").read_text())),
        "lines": [without_times(json.loads(line)) for line in lines],
        "state": state(folder),
    }
