"""What `fedms deploy` shows for real machines can be run as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

from fedms.config import load_config
from fedms.experiments.deployment import real_commands


def test_the_shown_run_is_a_config_with_these_sites(settings, tmp_path):
    config = settings("seed=3")
    file = tmp_path / "my experiment.yaml"
    file.write_text(config.to_yaml())
    lines = real_commands(file, config, ["gate.prior=0.3"], ["a", "b", "c"])
    (run,) = (shlex.split(line)[1:] for line in lines if "fedms run" in line)
    assert run[:2] == ["fedms", "run"] and run[3::2] == ["--set"] * (len(run[3:]) // 2)
    found = load_config(Path(run[2]), run[4::2])
    assert found.engine.name == "flower" and found.federation.sites == ("a", "b", "c")
    assert found.partition.clients == 3 and found.gate.prior == 0.3 and found.seed == 3
    sites = [shlex.split(line) for line in lines if "fedms site" in line]
    assert [each[0] for each in sites] == ["a", "b", "c"]
    assert all(each[-2:] == ["--model", config.model.name] for each in sites)
