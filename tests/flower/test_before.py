"""A run goes on from another one, and a client joins a finished one: on this machine and over sites."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.config import load_config
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.files import read_arrays
from fedms.experiments.before import joining
from fedms.experiments.description import write_partition
from fedms.experiments.experiment import run
from fedms.experiments.observers import Silent
from fedms.runs.folder import RunFolder
from fedms.runs.predict import load
from flower.test_engine_without_flwr import same_files, without_times
from tiny_run import finished, write_pictures  # noqa: F401

RATE = "training.learning_rate=0.01"


@pytest.fixture
def first(settings, tmp_path):
    """A finished run of three clients."""
    run(settings("engine.workers=1", "activation.blocks=2", RATE), tmp_path / "first")
    return tmp_path / "first"


@pytest.fixture
def sites(settings, tmp_path):
    """A folder of each client's samples."""
    write_partition(settings(), tmp_path / "written")
    return tmp_path / "written" / "sites"


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def after(folder, stage):
    arrays, _ = read_arrays(folder / "server" / f"after-{stage}.safetensors")
    return arrays


def kept(folder, client, at):
    return read_arrays(folder / "clients" / client / f"state-{at}.safetensors")[0]


def test_a_run_goes_on_from_what_another_one_left(settings, first, tmp_path):
    before = digests(first)
    nothing = ("engine.workers=1", "training.learning_rate=1e-30", "training.head_learning_rate=1e-30")
    still = ("training.local_learning_rate=1e-30", "gate.learning_rate=1e-30", f"start_from={first}")
    found = run(settings(*nothing, *still), tmp_path / "second")
    one, other = after(first, "local"), after(tmp_path / "second", "local")
    experts = [name for name in one if name.startswith(("frozen/", "shared/gate"))]
    assert any(name.endswith("lora_B") for name in experts) and any("gate" in name for name in experts)
    for name in experts:
        assert one[name].allclose(other[name], atol=1e-6), name
    for client in found["partition"]["clients"]:
        mine, theirs = kept(first, client, "1-1"), kept(tmp_path / "second", client, "1-1")
        assert mine.keys() == theirs.keys()
        assert all(mine[name].allclose(theirs[name], atol=1e-6) for name in mine)
    assert digests(first) == before


def test_going_on_is_resumed_to_the_same_bits(settings, first, tmp_path):
    config = settings("engine.workers=1", RATE, f"start_from={first}")
    wanted = run(config, tmp_path / "whole")

    class Stop(Silent):
        def round_done(self, record):
            if record["stage"] == "global":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "stopped", Stop())
    found = run(config, tmp_path / "stopped", resume=True)
    assert without_times(found) == without_times(wanted)
    assert same_files(tmp_path / "whole" / "clients", tmp_path / "stopped" / "clients") >= 6


def test_more_blocks_may_be_active_than_before(settings, first, tmp_path):
    config = settings("engine.workers=1", f"start_from={first}", "activation.blocks_local=all")
    assert run(config, tmp_path / "second")["clients"] == 3


def test_a_client_joins_and_nothing_else_changes(first, sites, tmp_path):
    before, place = digests(first), tmp_path / "joined"
    wide = ("--set", "engine.workers=1", "--set", RATE, "--out", str(place), "--quiet")
    told = CliRunner().invoke(
        app, ["join", str(first), "--name", "late", "--data", str(sites / "client-1"), *wide]
    )
    assert told.exit_code == 0, told.output
    result = json.loads((place / "result.json").read_text())
    assert [each["name"] for each in result["per_client"]] == ["late"] and result["rounds"] == 1
    assert result["accuracy_global"] is None and (place / "report.html").exists()
    whole = json.loads((first / "result.json").read_text())
    assert all(result[key] == whole[key] for key in ("prior", "interpolation", "evidence_scales"))
    one, other = after(first, "local"), after(place, "local")
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["local", "end"]
    model = read_arrays(place / "clients" / "late" / "model.safetensors")[0]
    assert any(not model[name].equal(model[f"global/{name[6:]}"]) for name in model if name[:6] == "local/")
    assert load(place, "late").predict(["light on"])[0].probability > 0
    assert digests(first) == before
    with pytest.raises(FedmsError, match="has a client client-1 already"):
        run(joining(first, "client-1", str(sites / "client-1")), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_joining_is_resumed_to_the_same_bits(first, sites, tmp_path):
    config = joining(first, "late", str(sites / "client-1"), ["federation.rounds_local=2", RATE])
    wanted = run(config, tmp_path / "whole")

    class Stop(Silent):
        def round_done(self, record):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "stopped", Stop())
    assert without_times(run(config, tmp_path / "stopped", resume=True)) == without_times(wanted)


def test_a_client_with_pictures_joins(finished, tmp_path):  # noqa: F811
    first = finished("vit")
    write_pictures(tmp_path / "pictures")
    found = run(joining(first, "late", str(tmp_path / "pictures")), tmp_path / "joined")
    assert found["per_client"][0]["samples"] > 20 and 0 <= found["accuracy_base"] <= 1
    on = load_config(RunFolder(first).config().model_dump(), [f"start_from={first}"])
    assert run(on, tmp_path / "second")["clients"] == 3


@pytest.mark.parametrize("method", ["fedavg", "local", "fedper", "mixture-constant"])
def test_every_kind_of_method_is_joined_and_gone_on_from(settings, sites, tmp_path, method):
    config = settings("engine.workers=1", f"method={method}")
    run(config, tmp_path / "first")
    joined = run(joining(tmp_path / "first", "late", str(sites / "client-1")), tmp_path / "joined")
    assert joined["clients"] == 1
    on = settings("engine.workers=1", f"method={method}", f"start_from={tmp_path / 'first'}")
    assert run(on, tmp_path / "second")["clients"] == 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lora.rank=4"], "has lora.rank 2, not 4"),
        (["method=fedavg"], "has method fedms, not fedavg"),
        (["data.classes=[light,music,turn,zoo]"], "class zoo is not in both"),
        (["activation.maximum=1"], "has 2 active blocks, and activation.maximum is 1"),
    ],
)
def test_what_does_not_fit_is_one_line(settings, first, tmp_path, overrides, says):
    config = settings(f"start_from={first}", *overrides)
    with pytest.raises(FedmsError, match=says) as told:
        run(config, tmp_path / "second")
    assert "\n" not in str(told.value) and not (tmp_path / "second").exists()


def test_another_model_an_unfinished_run_and_lost_files_are_one_line(settings, first, checkpoint, tmp_path):
    config = settings("engine.workers=1", f"start_from={first}")
    identity = json.loads((first / "identity.json").read_text())
    other = shutil.copytree(first, tmp_path / "other")
    identity["model"]["weights"] = "0" * 64
    (other / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(FedmsError, match="its weights are different"):
        run(config.model_copy(update={"start_from": str(other)}), tmp_path / "second")
    gone = shutil.copytree(first, tmp_path / "gone")
    shutil.rmtree(gone / "clients" / "client-1")
    with pytest.raises(FedmsError, match="what client client-1 kept is gone"):
        run(config.model_copy(update={"start_from": str(gone)}), tmp_path / "second")
    (gone / "result.json").unlink()
    with pytest.raises(FedmsError, match="not a finished run"):
        run(config.model_copy(update={"start_from": str(gone)}), tmp_path / "second")
    with pytest.raises(FedmsError, match="no such folder"):
        run(config.model_copy(update={"start_from": str(tmp_path / "none")}), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_client_that_joins_needs_data_and_a_run(first):
    with pytest.raises(ConfigError, match="--data: needed"):
        joining(first, "late", None)
    with pytest.raises(ConfigError, match="join: needs start_from"):
        load_config({"join": "late"})
    with pytest.raises(ConfigError, match="cannot be a folder's name"):
        joining(first, "../x", "a.csv")


def test_sites_go_on_and_one_joins_to_the_same_bits(fleet, tmp_path):
    made = fleet("engine.workers=1")
    run(made.local, tmp_path / "local")
    made.all_come()
    run(made.config, tmp_path / "server")
    old = {path.name for path in made.folder.glob("sites/client-1/runs/*")}
    onward = f"start_from={tmp_path / 'local'}"
    wanted = run(load_config(made.local.model_dump(), [onward]), tmp_path / "local2")
    found = run(made.with_keys(f"start_from={tmp_path / 'server'}"), tmp_path / "server2")
    assert without_times(found) == without_times(wanted)
    for client in ("client-0", "client-1", "client-2"):
        [new] = [path for path in made.folder.glob(f"sites/{client}/runs/*") if path.name not in old]
        one = kept(tmp_path / "local2", client, "1-1")
        assert all(one[name].equal(array) for name, array in kept(new, client, "1-1").items())


def test_a_site_joins_to_the_bits_of_a_client_that_joins_here(fleet, sites, tmp_path):
    made = fleet("engine.workers=1")
    nodes = made.all_come()
    run(made.config, tmp_path / "server")
    made.post.there.pop(nodes["client-1"])
    before = digests(tmp_path / "server") | digests(made.folder / "sites")
    public = f"evaluation.public={made.values['evaluation']['public']}"
    wanted = run(joining(tmp_path / "server", "late", str(sites / "client-1"), [public]), tmp_path / "here")
    made.files["late"] = sites / "client-1"
    made.come("late")
    found = run(joining(tmp_path / "server", "late", None), tmp_path / "there")
    assert without_times(found) == without_times(wanted) and found["accuracy_global"] is not None
    assert before.items() <= (digests(tmp_path / "server") | digests(made.folder / "sites")).items()


def test_a_site_that_lost_the_run_before_says_so(fleet, tmp_path):
    made = fleet("engine.workers=1", "federation.attempts=1", "federation.rounds_global=1")
    made.all_come()
    run(made.config, tmp_path / "server")
    for state in made.folder.glob("sites/client-1/runs/*/clients/client-1/state-*"):
        state.unlink()
    made.post.there.clear()
    made.all_come()
    with pytest.raises(FedmsError, match="what it trained in the run before is gone"):
        run(made.with_keys(f"start_from={tmp_path / 'server'}"), tmp_path / "second")
