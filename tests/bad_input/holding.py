"""Helpers for bad input: the form of an error line, the content of a folder, a forbidden pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Refused = Callable[..., str]


class Mine:
    """An object that creates a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, ("executed",)


def tree(folder: Path) -> dict[str, str]:
    """The content of a folder: the target of each link and a digest of each file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            held = f"-> {path.readlink()}"
        elif path.is_file():
            held = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            held = "folder" if path.is_dir() else "special"
        found[str(path.relative_to(folder))] = held
    return found


def one_line(stderr: str, *says: str) -> str:
    """The error line, after checking its form and that it contains these words."""
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    line = stderr.strip()
    assert line.isprintable(), repr(line)
    assert "Traceback" not in line and "error: unexpected" not in line, line
    assert len(line) < 1000, line
    for word in says:
        assert word in line, f"{word!r} is not in {line!r}"
    return line


DECLARED_BY_ROW = {"summary": "", "paper": "", "overrides": {}, "tuned": {}}


def comparison_of(result: dict[str, Any]) -> bytes:
    """A comparison.json with two rows of equal results."""
    apart = {"difference": 0.01, "low": 0.0, "high": 0.02, "p": 0.04, "pairs": 12, "distinguishable": True}
    mean = {key: value for key, value in result.items() if isinstance(value, float | int)}
    rows = [
        {
            "name": name,
            "method": name,
            **DECLARED_BY_ROW,
            "mean": mean,
            "std": dict.fromkeys(mean, 0.1),
            "best": {},
            "frontier": result["frontier"],
        }
        | {
            "versus_baseline": {"accuracy_local": apart, "accuracy_global": apart}
            if name != "fedms"
            else None
        }
        for name in ("fedms", "local")
    ]
    runs = [
        {"row": row["name"], "seed": 0, "folder": f"runs/{row['name']}-0", "result": result} for row in rows
    ]
    whole = {
        "config": {},
        "environment": {},
        "seeds": [0],
        "baseline": "fedms",
        "methods": rows,
        "runs": runs,
        "tuning": {},
    }
    return json.dumps(whole).encode()
