"""A whole comparison of real runs, killed in the middle and gone on with."""

import json

import pytest
from outcomes import without_times
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.experiments.comparison.compare import compare
from fedms.experiments.comparison.folder import PREFIX_FOLDER
from fedms.experiments.observers import Silent
from fedms.model.backbone import Backbone

pytestmark = pytest.mark.integration


class Killed(Silent):
    """Gives up in the second round of the third run."""

    def __init__(self) -> None:
        self.begun = self.rounds = 0
        self.notes: list[str] = []

    def begin(self, config, facts):
        self.begun += 1

    def note(self, text):
        self.notes.append(text)

    def round_done(self, record):
        self.rounds += self.begun == 3
        if self.rounds == 2:
            raise KeyboardInterrupt


def test_a_comparison_that_was_killed_comes_to_what_an_undisturbed_one_does(tiny, perform, tmp_path):
    config = tiny("compare.methods=[fedms, mixture-constant]", "compare.seeds=[0, 1]")
    with pytest.raises(KeyboardInterrupt):
        compare(config, tmp_path / "c", Killed())
    finished = {path.parent: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*/*/result.json")}
    assert len(finished) == 2
    again = Killed()
    again.rounds = 3
    made = compare(config, tmp_path / "c", again)
    assert any(note.startswith("going on after") for note in again.notes), "it was thrown away"
    assert all((folder / "result.json").stat().st_mtime_ns == time for folder, time in finished.items())
    assert [(run["row"], run["seed"]) for run in made["runs"]] == [
        (row, seed) for seed in (0, 1) for row in ("fedms", "mixture-constant")
    ]
    # with a first stage taken over, and without; train_flops differ, as who takes it over fills its clients'
    # caches once more
    for run in made["runs"]:
        alone = perform(f"method={run['row']}", f"seed={run['seed']}").result
        for key in ("accuracy_local", "accuracy_global", "frontier", "per_client", "uplink_bytes"):
            assert run["result"][key] == alone[key], (run["row"], run["seed"], key)
    fedms, constant = made["methods"]
    assert (
        made["baseline"] == "fedms"
        and fedms["versus_baseline"] is None
        and constant["versus_baseline"]["accuracy_local"]["pairs"] == 8
    )
    assert not (tmp_path / "c" / PREFIX_FOLDER).exists()
    assert len(fedms["frontier"]) == 11 and fedms["std"]["accuracy_local"] is not None


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_frozen_blocks_come_to_is_computed_by_the_first_run_alone(
    tiny, perform, tmp_path, monkeypatch, workers
):
    begun, embed = [], Backbone.embed
    monkeypatch.setattr(
        Backbone, "embed", lambda self, *inputs: begun.append("embedded") or embed(self, *inputs)
    )
    watch = Silent()
    monkeypatch.setattr(watch, "begin", lambda config, facts: begun.append(config.method))
    made = compare(
        tiny("compare.methods=[sal-fixed, statistics]", "compare.seeds=[0]", f"engine.workers={workers}"),
        tmp_path,
        watch,
    )
    second = begun.index("statistics")
    if workers == 1:
        assert begun[:second].count("embedded") > 10
        assert begun[second + 1 :] == ["embedded"] * len(made["runs"][0]["result"]["partition"]["classes"]), (
            "the classes' names alone"
        )
    for run in made["runs"]:
        assert without_times(run["result"]) == without_times(perform(f"method={run['row']}").result)


def test_the_command_shows_a_table_and_says_where_it_is(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(tiny().to_yaml())
    command = ["compare", "tiny.yaml", "--methods", "fedavg,statistics", "--seeds", "0,1"]
    done = CliRunner().invoke(app, [*command, "--set", "log.tensorboard=true"])
    assert done.exit_code == 0, done.output
    assert (
        "run 1 of 4: fedavg, seed 0" in done.stdout
        and "global 1/2" in done.stdout
        and "runs/tiny-compare/comparison.md" in done.stdout
    )
    assert len(list((tmp_path / "runs/tiny-compare").glob("runs/*/tensorboard/events.*"))) == 4
    again = CliRunner().invoke(app, command)
    assert "4 of 4 runs are finished already" in again.stdout and "global 1/2" not in again.stdout
    assert CliRunner().invoke(app, ["report", "runs/tiny-compare"]).exit_code == 0
    values = json.loads((tmp_path / "runs/tiny-compare/comparison.json").read_text())
    assert (
        set(values) == {"config", "environment", "seeds", "baseline", "methods", "runs", "tuning"}
        and values["baseline"] == "fedavg"
    )
