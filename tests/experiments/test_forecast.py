"""`--dry-run` says what would be done, and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.config import Config, changed, load_config
from fedms.core.errors import ConfigError
from fedms.experiments import forecast
from tiny_run import finished  # noqa: F401


@pytest.fixture
def config(finished: Callable[..., Path]) -> Config:  # noqa: F811
    return load_config(finished() / "config.yaml")


def compared(config: Config, **section: object) -> Config:
    return load_config(config.model_dump() | {"compare": section})


def test_a_forecast_is_near_to_what_the_run_took(finished, config):  # noqa: F811
    result = json.loads((finished() / "result.json").read_text())
    (found,) = forecast.forecast_run(config)
    assert (found.runs, found.clients, found.parameters) == (1, 3, result["trainable_parameters"])
    assert found.stages == (("global", 1, 2), ("local", 1, 3))
    took = result["train_flops"] + result["evaluation_flops"]
    assert 0.6 < found.operations / took < 1.6, (found.operations, took)
    assert found.seconds is not None and found.seconds > 0


def test_twice_the_rounds_take_longer_and_more_epochs_too(config):
    (once,) = forecast.forecast_run(config)
    for keys in ({"federation.rounds_global": 2}, {"training.epochs": 2}):
        (more,) = forecast.forecast_run(changed(config, keys))
        assert more.operations > once.operations


def test_a_comparison_counts_rows_seeds_trials_and_the_first_stages_they_share(config):
    rows = {"methods": ["fedms", "mixture-constant", "local"], "seeds": [0, 1], "baseline": "fedms"}
    found = {each.name: each for each in forecast.forecast_comparison(compared(config, **rows))}
    assert {name: each.runs for name, each in found.items()} == {
        "first stage of fedms, mixture-constant": 2,
        "fedms": 2,
        "mixture-constant": 2,
        "local": 2,
    }
    assert [name for name, _, _ in found["fedms"].stages] == ["local"]
    tuned = compared(config, methods=["local"], seeds=[0, 1], tune={"training.epochs": [1, 2]})
    found = {each.name: each for each in forecast.forecast_comparison(tuned)}
    assert {name: each.runs for name, each in found.items()} == {
        "local, training.epochs=1": 1,
        "local, training.epochs=2": 1,
        "local": 1,
    }
    one, two = (found[f"local, training.epochs={epochs}"].operations for epochs in (1, 2))
    assert one < two


def test_what_trains_nothing_has_no_time_and_sites_have_no_forecast(config):
    (found,) = forecast.forecast_run(changed(config, {"method": "fedncm"}))
    assert found.seconds is None and found.stages == () and found.parameters == 0
    sites = load_config({"engine": {"name": "flower"}, "partition": {"rule": "files"}})
    with pytest.raises(ConfigError, match=r"engine\.name: flower has its data elsewhere"):
        forecast.forecast_run(sites)


def test_the_commands_say_it_and_write_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    monkeypatch.setattr(forecast, "measured", lambda *given: 2.0)
    one = CliRunner().invoke(app, ["run", "mine.yaml", "--dry-run"])
    assert one.exit_code == 0, one.output
    assert "global 1×2, local 1×3" in one.stdout and "1 run, 3 clients, 120 samples, about" in one.stdout
    arguments = ["--methods", "fedms,local", "--seeds", "0-2", "--dry-run"]
    more = CliRunner().invoke(app, ["compare", "mine.yaml", *arguments])
    assert more.exit_code == 0 and "6 runs, 3 clients" in more.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
