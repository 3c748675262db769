"""The example that shows the parts works as it says."""

import runpy
from pathlib import Path

PROGRAM = Path(__file__).parent.parent / "examples" / "fedavg_by_hand.py"


def test_the_example_runs_and_learns(capsys):
    program = runpy.run_path(str(PROGRAM))
    first, second = program["main"](rounds=2)
    assert second > first > 0.1
    assert "round 2: trained by 3 clients" in capsys.readouterr().out
    assert max(map(len, PROGRAM.read_text().splitlines())) <= 110
