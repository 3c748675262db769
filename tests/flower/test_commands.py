"""What `fedms deploy` shows for real machines can be run as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedms.cli.main import app
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


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("site --name a --data d --folder f --superlink fl.example:1", "--tls and --key are needed"),
        ("site --name a --data d --folder f --superlink 127.0.0.1:1 --key k", "--key: needs --tls"),
        ("site --name a --data d --folder f --superlink x:1 --tls t --key k", "--tls t: no such file"),
        ("serve --folder f --door 0.0.0.0:8443", "needs --keys"),
        ("serve --folder f --keys k --door 0.0.0.0:84430", "must be HOST:PORT"),
        ("serve --folder f --keys k --door 8443", "must be HOST:PORT"),
    ],
)
def test_a_command_that_cannot_work_ends_in_one_line(tmp_path, monkeypatch, line, says):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, line.split())
    assert told.exit_code == 2 and says in told.output and len(told.output.splitlines()) == 1
    assert not [*tmp_path.iterdir()]
