"""The commands `init`, `config` and `clean`."""

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.config import load_config
from fedms.experiments import description
from fedms.federation.world import open_world
from tiny_run import write_texts
from tiny_text import llama  # noqa: F401

runner = CliRunner()


def write_rows(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_config_for_a_file_takes_its_columns_and_owners():
    rows = [[str(n), f"a longer message {n}", "yes" if n % 3 else "no", f"s{n // 60}"] for n in range(240)]
    write_rows(Path("mine.csv"), ["id", "message", "urgent", "site"], rows)
    result = runner.invoke(app, ["init", "mine.csv"])
    assert result.exit_code == 0, result.output
    assert "text    column message" in result.stdout and "label   column urgent: no, yes" in result.stdout
    config = load_config("fedms.yaml")
    assert (config.data.source, config.data.text, config.data.label) == ("mine.csv", "message", "urgent")
    assert (config.partition.rule, config.partition.column, config.federation.cohort) == ("column", "site", 4)
    assert len(description.describe_partition(config)["clients"]) == 4


def test_a_config_for_a_file_without_owners_draws_clients():
    write_texts(Path("mine.csv"))
    assert runner.invoke(app, ["init", "mine.csv", "--out", "new.yaml"]).exit_code == 0
    config = load_config("new.yaml")
    assert (config.partition.rule, config.partition.clients) == ("dirichlet", 3)


def test_a_config_for_sites_has_one_client_a_file():
    Path("sites").mkdir()
    for name in ("north", "south"):
        write_texts(Path("sites") / f"{name}.csv")
    result = runner.invoke(app, ["init", "sites"])
    assert result.exit_code == 0 and "clients 2: north, south" in result.stdout
    described = description.describe_partition(load_config("fedms.yaml"))
    assert described["clients"] == ["north", "south"]


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        (["speaker", "line", "reply"], "column"),
        (["id", "Question", "Answer"], "equal"),
        (["a", "b"], "equal"),
    ],
)
def test_a_config_for_a_language_model_takes_prompts_and_answers(llama, columns, rule):  # noqa: F811
    rows = [["ann", "a asks :", "b c d"], ["bob", "b asks :", "d f h"]] * 30
    write_rows(Path("talk.csv"), columns, [row[-len(columns) :] for row in rows])
    result = runner.invoke(app, ["init", "talk.csv", "--from", "text"])
    assert result.exit_code == 0, result.output
    assert (
        f"prompt  column {columns[-2]}" in result.stdout and f"answer  column {columns[-1]}" in result.stdout
    )
    world = open_world(load_config("fedms.yaml", [f"model.name={llama}"]))
    assert (world.config.task, world.config.partition.rule, len(world.clients)) == ("text", rule, 2)
    assert {(p.prompt, p.answer) for p in world.dataset.inputs} == {(row[-2], row[-1]) for row in rows}


def test_the_demo_can_be_a_file_of_ones_own():
    assert runner.invoke(app, ["init"]).exit_code == 0
    assert load_config("fedms.yaml") == load_config("assistant")
    assert "fedms run fedms.yaml" in Path("fedms.yaml").read_text()


def test_no_file_is_overwritten_and_wrong_use_is_one_line():
    Path("fedms.yaml").write_text("mine")
    assert runner.invoke(app, ["init"]).exit_code == 1
    assert Path("fedms.yaml").read_text() == "mine"
    write_rows(Path("n.csv"), ["message"], [["a"], ["b"], ["c"]])
    for arguments, code, words in (
        (["n.csv", "--out", "x.yaml"], 1, "no column looks like a label"),
        (["none.csv", "--out", "x.yaml"], 1, "none.csv: no such file"),
        (["n.csv", "--from", "text", "--out", "x.yaml"], 1, "no two columns for prompt and answer"),
        (["--from", "csv", "--out", "x.yaml"], 2, "needs a FILE"),
    ):
        result = runner.invoke(app, ["init", *arguments])
        assert result.exit_code == code and words in result.stderr and result.stderr.count("\n") == 1
    assert not Path("x.yaml").exists()


@pytest.mark.parametrize("option", ["--yaml", "--schema", "--markdown", "gate.prior"])
def test_config_explains(option):
    result = runner.invoke(app, ["config", option])
    assert result.exit_code == 0 and "prior" in result.stdout
    assert (
        runner.invoke(app, ["config", "gate", "--yaml" if option != "--yaml" else "--schema"]).exit_code == 2
    )


def test_an_unfinished_run_is_not_cleaned():
    Path("run/server").mkdir(parents=True)
    state = Path("run/server/state-1.safetensors")
    state.write_bytes(b"x")
    result = runner.invoke(app, ["clean", "run"])
    assert result.exit_code == 1 and "not a finished run" in result.stderr and state.exists()
