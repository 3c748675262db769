"""What a site takes from a server, and what it tells it."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict, replace

import pytest
import yaml

from fedms.config import Config
from fedms.config.data import DataConfig
from fedms.config.site import SiteConfig, load_site
from fedms.core.errors import ConfigError, FedmsError
from fedms.engines.flower.site import local_config, withheld
from fedms.engines.flower.wire import TASK, Hello, Reply, Request, Terms, config_for_sites
from fedms.experiments.experiment import run
from fedms.experiments.observers import Silent
from fedms.federation.messages import Failure, Task, Update, decode_answer, encode
from fedms.federation.methods import METHODS
from fedms.runs.export.export import export_client
from fedms.runs.predict import load
from fedms.runs.report.run.page import write_report


@pytest.fixture
def asked(fleet, tmp_path):
    """A finished federation, and the first request that client-1 got."""
    made = fleet()
    nodes = made.all_come()
    run(made.config, tmp_path / "run")
    letters = [each for each in made.post.carried if each.kind == TASK and each.node == nodes["client-1"]]
    return made, made.post.there[nodes["client-1"]], Request.of(letters[0].data)


def failure(site, request):
    answer = decode_answer(Reply.of(site.answer(request.to_bytes())).answer)
    assert isinstance(answer, Failure), answer
    return answer


def told(request, run_id, **changes):
    """The request, of another run with other terms."""
    config = yaml.safe_load(request.told.config)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section] = value if not name else {**(config.get(section) or {}), name: value}
    terms = replace(request.told, run=run_id * 32, config=yaml.safe_dump(config))
    return replace(request, run=terms.run, terms=terms.digest, told=terms)


def test_predict_and_export_need_the_sites_folder_alone(asked, tmp_path):
    _, site, request = asked
    folder = site.folder / "runs" / request.run
    model = load(folder, "client-1")
    assert {each.label for each in model.predict(["turn the kitchen light on"])} <= {"light", "music", "turn"}
    assert export_client(model, tmp_path / "exported")
    with pytest.raises(FedmsError, match="holds no personal models; they are at the sites"):
        load(tmp_path / "run", "client-1")
    result = json.loads((folder / "result.json").read_text())
    assert result["partition"]["clients"] == ["client-1"]


def test_a_hello_names_every_run_and_what_the_site_keeps_of_it(asked):
    _, site, request = asked
    for number in range(30):
        terms = site.folder / "runs" / f"{number:032x}" / "terms.json"
        terms.parent.mkdir()
        terms.write_bytes(b"of a version that this one cannot read")
    runs = Hello.of(site.hello()).runs
    assert len(runs) == 31 and runs[request.run].terms == request.terms
    assert runs[request.run].kept == {"received": (1, 0), "state": (1, 1)}


def test_what_a_site_keeps_is_its_owners(asked):
    _, site, _ = asked
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700


def test_the_server_names_no_place(asked):
    """Whatever the config says of data, model and public file, the site reads its own."""
    made, site, request = asked
    values = yaml.safe_load(request.told.config)
    values |= {"data": {"source": "/etc/passwd", "template": "say {text}"}, "device": "cuda"}
    values["model"] |= {"name": "/etc", "adapter": "/etc"}
    values["evaluation"] |= {"public": "/etc/passwd"}
    config = local_config(yaml.safe_dump(values), site.settings)
    assert config.data == site.settings.data.model_copy(update={"template": "say {text}"})
    assert config.device == "cpu"
    assert config.model.name == made.local.model.name and config.model.adapter is None
    assert config.evaluation.public == site.settings.public


def test_a_site_answers_only_runs_that_promise_the_privacy_it_demands():
    settings = SiteConfig(name="anna", folder="here", data=DataConfig(), epsilon=4.0)
    values = yaml.safe_load(Config().to_yaml())

    def taken(**privacy):
        return local_config(yaml.safe_dump({**values, "privacy": privacy}), settings).privacy.epsilon

    assert taken(unit="record", epsilon=3.0) == 3.0
    seeded = {"unit": "record", "epsilon": 3.0, "noise": "seeded"}
    for less in ({}, {"unit": "record", "epsilon": 5.0}, seeded):
        with pytest.raises(FedmsError, match=r"demands differential privacy with privacy\.epsilon 4 at most"):
            taken(**less)


def test_of_the_data_a_site_is_told_the_template_alone(settings):
    told = yaml.safe_load(config_for_sites(settings("data.template=say {text}")))
    assert told["data"] == {"template": "say {text}"}


def test_a_plugin_is_not_imported_for_a_server(asked, tmp_path, monkeypatch):
    _, site, request = asked
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').write('was here')")
    monkeypatch.syspath_prepend(tmp_path)
    found = failure(site, told(request, "a", plugins=["planted"]))
    assert found.reason == "FedmsError; the reason is in the site's log"
    assert not (tmp_path / "marker").exists()


def test_a_model_that_the_site_does_not_allow(asked):
    _, site, request = asked
    other = replace(request.told, run="b" * 32, model={**request.told.model, "weights": "0" * 64})
    found = failure(site, replace(request, run=other.run, terms=other.digest, told=other))
    assert found.kind == "error"


def test_a_method_that_is_another_one_here(asked, caplog):
    _, site, request = asked
    changed = {**json.loads(json.dumps(METHODS["fedms"].to_dict())), "summary": "something else"}
    other = replace(request.told, run="d" * 32, methods=(changed,))
    assert failure(site, replace(request, run=other.run, terms=other.digest, told=other)).kind == "error"
    assert "method fedms is another one" in caplog.text


def test_terms_of_a_run_never_change(asked):
    _, site, request = asked
    changed = told(request, "c", seed=7)
    same_run = replace(changed.told, run=request.run)
    found = failure(site, replace(request, terms=same_run.digest, told=same_run, number=request.number + 999))
    assert found.kind == "error"
    kept = site.folder / "runs" / request.run / "terms.json"
    assert Terms.of(kept.read_bytes()) == request.told


def test_a_text_of_a_failure_stays_at_home(asked, caplog):
    _, site, request = asked
    secret = Task("no such question: a patient's name", "client-1", "global", 1)
    found = failure(site, replace(request, task=encode(secret), number=request.number + 999))
    assert "patient" not in json.dumps(asdict(found)) and "the site's log" in found.reason
    assert "patient" in caplog.text


def test_a_task_for_another_client_is_not_done(asked):
    _, site, request = asked
    foreign = Task("statistics", "client-0", "global", 0)
    assert failure(site, replace(request, task=encode(foreign), number=request.number + 999)).kind == "error"


def test_an_old_request_is_dropped(asked):
    _, site, request = asked
    assert failure(site, request).kind == "deadline"


@pytest.mark.parametrize("run_id", ["../../etc", "", "A" * 32, "a" * 31])
def test_a_runs_id_is_no_path(asked, run_id):
    _, site, request = asked
    with pytest.raises(FedmsError):
        site.answer(replace(request, run=run_id).to_bytes())


@pytest.mark.parametrize("data", [b"", b"x", b"stack", b"stack" + b"\xff" * 30])
def test_bytes_that_are_no_request(asked, data):
    _, site, _ = asked
    with pytest.raises(FedmsError):
        site.answer(data)


def test_counts_are_told_only_where_the_site_says_so(fleet, tmp_path):
    made = fleet()
    for name in made.files:
        made.come(name, share=["hits", "test"] if name == "client-1" else ["counts", "hits", "test"])
    assert run(made.config, tmp_path / "run")["partition"]["counts"] == []


def test_how_good_its_models_are_leaves_a_site_only_where_it_says_so(fleet, tmp_path):
    made, notes = fleet(), list[str]()
    for name in made.files:
        made.come(name, **({"share": ["counts"]} if name == "client-1" else {}))
    observer = Silent()
    observer.note = notes.append  # type: ignore[assignment, method-assign]
    found = run(made.config, tmp_path / "run", observer)
    assert found["accuracy_local"] is found["accuracy_base"] is found["gate_global_share"] is None
    assert found["frontier"] == []
    kept = {each["name"]: each["accuracy_local"] is None for each in found["per_client"]}
    assert kept == {name: name == "client-1" for name in made.files}
    assert [note for note in notes if "1 of 3 sites did not share how good their models are" in note]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["validation_score"] is None for line in lines)
    assert all(json.loads(line)["failures"] == [] for line in lines)
    [own] = (made.folder / "sites" / "client-1" / "runs").glob("*/result.json")
    assert 0 <= json.loads(own.read_text())["accuracy_local"] <= 1
    write_report(tmp_path / "run")


@pytest.mark.parametrize("share", [(), ("test",), ("hits",)])
def test_what_a_site_keeps_is_in_no_answer(share):
    said = {"samples": 3, "network_kept": True, "test_own": 0.5, "base_correct": 2, "flops": 7}
    told = withheld(Update("a", metrics=said), "test", share).metrics
    assert told == (said if "test" in share else {"samples": 3, "network_kept": True, "flops": 7})
    for kind in ("evaluate", "train"):
        told = withheld(Update("a", metrics={"loss": 1.0, "correct": 4}), kind, share).metrics
        assert told == ({"loss": 1.0, "correct": 4} if "hits" in share else {"loss": 1.0})


def test_a_site_with_less_capacity_trains_fewer_blocks(fleet, tmp_path):
    made = fleet()
    for name in made.files:
        made.come(name, capacity=1 if name == "client-1" else None)
    found = run(made.with_keys("activation.blocks=all", "activation.rule=fixed"), tmp_path / "run")
    assert len(found["per_client"]) == 3
    assert not [
        line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if "refused" in line
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "a/b"}, "name: input should be a name"),
        ({"name": "a", "folder": "f", "data": "x", "models": []}, "models"),
        ({"name": "a", "folder": "f", "data": "x", "epochs": 3}, "epochs: unknown key"),
        ({"name": "a", "folder": "f"}, "data: field required"),
    ],
)
def test_bad_settings_of_a_site(given, message):
    with pytest.raises(ConfigError, match=message):
        load_site(None, given)
