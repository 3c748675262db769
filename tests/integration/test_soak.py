"""A small version of bench/soak.py: rounds that lose answers leave no open files and no stray files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def test_rounds_that_lose_answers_leave_nothing_behind() -> None:
    script = Path(__file__).parents[2] / "bench" / "soak.py"
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", "24", "--deaths", "0.03"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["rounds"] == 24 and told["lost"].keys() == {"error", "refused", "died"}
    assert told["descriptors_last"] == told["descriptors_middle"]
    assert told["files_last"] <= 20 * (2 * 3 + 1) + 10, (
        "of each of 20 clients: two kinds of files, of each three versions, and its model"
    )
    assert told["cached_last"] <= 20 * 3 + 1, "frozen outputs of three splits of each, and of everyone"
