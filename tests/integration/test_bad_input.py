"""What a user gets wrong is one line that says what to mend, and nothing is left behind."""

import json

import pytest
from typer.testing import CliRunner

from fedms.cli import app

pytestmark = pytest.mark.integration

CASES = {
    "unknown key": (["gate.prio=0.3"], 2, "gate.prio: unknown key; allowed: objective"),
    "wrong type": (["federation.cohort=many"], 2, "federation.cohort: "),
    "out of range": (["gate.prior=1.5"], 2, "gate.prior: "),
    "wrong combination": (["partition.rule=column"], 2, "partition.column: needed"),
    "more asked than there are": (["federation.cohort=5"], 2, "federation.cohort: 5 is more than partition.clients (4)"),
    "unknown method": (["method=fedmss"], 2, "method: 'fedmss' is not known; allowed: fedms, "),
    "too many blocks": (["activation.blocks=4"], 2, "activation.blocks: 4 is more than the 3 blocks"),
    "unknown layer": (["lora.targets=[nowhere]"], 2, "lora.targets: 'nowhere' is not a linear layer"),
    "too many classes each": (["partition.rule=classes", "partition.classes_per_client=9"], 2, "partition.classes_per_client: 9"),
    "no data file": (["data.source=nowhere.csv"], 1, "nowhere.csv"),
    "no such column": (["data.label=mood"], 1, "mood"),
    "no such partition column": (["partition.rule=column", "partition.column=mood"], 1, "no column 'mood'"),
    "no data": (["data.source=empty.csv"], 1, "empty.csv: holds no samples"),
    "one class": (["data.source=one.csv"], 1, "one.csv"),
    "too few samples": (["partition.min_samples=60"], 1, "partition.min_samples (60)"),
    "no such model": (["model.name=./nowhere"], 1, "model ./nowhere: there is no such folder"),
    "unknown family": (["model.name=./gpt"], 1, "family 'gpt2' has no known blocks; known: bert"),
    "no weights": (["model.name=./bare"], 1, "no usable safetensors weights"),
}


@pytest.fixture(scope="module")
def place(tiny, text_model, tmp_path_factory):
    """A folder with a good config and bad things to name in it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "good.yaml").write_text(tiny().to_yaml())
    (folder / "empty.csv").write_text("text,label\n")
    (folder / "one.csv").write_text("text,label\n" + "hello,a\n" * 50)
    for name, config in (("gpt", {"model_type": "gpt2"}), ("bare", json.loads((text_model / "config.json").read_text()))):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("overrides", "code", "says"), CASES.values(), ids=CASES)
def test_a_wrong_input_is_one_line_and_leaves_nothing(place, monkeypatch, overrides, code, says):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    sets = [part for override in overrides for part in ("--set", override)]
    done = CliRunner().invoke(app, ["run", "good.yaml", *sets, "--quiet"])
    assert done.exit_code == code, done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert says in done.stderr and "unexpected" not in done.stderr
    assert done.stdout == ""
    assert sorted(place.rglob("*")) == before


def test_a_config_that_is_not_there_is_one_line(place, monkeypatch):
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, ["run", "nowhere.yaml"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: nowhere.yaml: cannot read the config: No such file or directory\n"
    assert not (place / "runs").exists()


def test_a_folder_with_something_in_it_is_not_written_over(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    (tmp_path / "thesis.txt").write_text("mine")
    done = CliRunner().invoke(app, ["run", "good.yaml", "--out", str(tmp_path)])
    assert done.exit_code == 1 and "already there and not empty" in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
