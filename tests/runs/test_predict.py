"""One client on new input: what the experiment measured, what an export says, and one line for all else."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedms
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.files import read_arrays, write_arrays
from fedms.data.images import upright
from fedms.experiments.observers import Silent
from fedms.federation.personal_model import UNSCALED
from fedms.federation.world import open_world
from fedms.runs.export.export import export_client
from fedms.runs.folder import RunFolder
from tiny_run import finished  # noqa: F401 (a fixture)

MIXTURES = {
    "fedms": {},
    "counts": {"gate__evidence": "counts", "gate__features": "backbone", "mixture__on": "logits"},
    "posterior": {"gate__evidence": "posterior"},
    "network alone": {"gate__evidence": "none", "federation__aggregation": "exact"},
    "likelihood": {"gate__objective": "likelihood", "head__kind": "text"},
    "constant": {"method": "mixture-constant", "activation__order": "bottom-up"},
    "template": {"data__template": "please {text}"},
}
ALONE = {
    name: {"method": name} for name in ("fedavg", "fedavg-finetune", "local", "fedavg-prior", "fedsa-lora")
}
COMPARED: dict[str, dict[str, Any]] = {
    "counts": {"method": "mixture-count", "gate__prior": 0.7},
    "own likelihood": {"method": "pfl-moe"},
    "drawn A": {"method": "ffa-lora"},
    "product": {
        "method": "flexlora",
        "lora__tiers": ({"share": 0.5, "rank": 2}, {"share": 0.5, "rank": 4}),
        "federation__aggregation": "svd",
    },
}
NO_ADAPTER = {
    "feddpa": "weighs two experts' pairs against each other within every layer",
    "fedalt": "weighs other clients' pairs against its own within every layer",
    "fedclip": "puts an attention before the head",
    "promptfl": "puts soft prompts before every input",
    "linear-probe": "trains no LoRA pair",
    "fedncm": "trains no LoRA pair",
    "statistics": "trains no expert",
}
TEXTS = ["turn on the light", "play music please", "off"]


def global_weight(prediction):
    """How much the global expert counts; the client's method mixes two."""
    assert prediction.global_weight is not None
    return prediction.global_weight


@pytest.mark.parametrize(
    "changes",
    [
        *MIXTURES.values(),
        *ALONE.values(),
        *COMPARED.values(),
        *({"method": name} for name in NO_ADAPTER),
        {"family": "vit"},
    ],
    ids=str,
)
def test_a_client_predicts_as_it_was_tested(finished, changes):  # noqa: F811
    run = finished(**changes)
    world = open_world(RunFolder(run).config())
    result = json.loads((run / "result.json").read_text())
    for told in result["per_client"]:
        client = fedms.load(run, told["name"])
        for samples, key in (
            (world.samples(told["name"], "test"), "accuracy_local"),
            (world.everyone["test"], "accuracy_global"),
        ):
            found = client.predict([world.dataset.inputs[row] for row in samples.rows])
            right = [
                each.label == world.dataset.class_names[label]
                for each, label in zip(found, samples.labels, strict=True)
            ]
            assert sum(right) / len(right) == pytest.approx(told[key], abs=1e-6)
            if key == "accuracy_local" and told["gate_global_share"] is not None:
                share = sum(global_weight(each) for each in found) / len(found)
                assert share == pytest.approx(told["gate_global_share"], abs=1e-5)


def test_a_prediction_adds_up_and_names_its_parts(finished):  # noqa: F811
    client = fedms.load(finished(), "client-1")
    assert client.predict([]) == []
    for each in client.predict(TEXTS):
        assert each.probability == each.probabilities[each.label] == max(each.probabilities.values())
        assert list(each.probabilities.values()) == sorted(each.probabilities.values(), reverse=True)
        assert set(each.probabilities) == {"lights_on", "lights_off", "music", "volume"}
        assert sum(each.probabilities.values()) == pytest.approx(1)
        assert each.local_weight == pytest.approx(1 - global_weight(each))


def test_the_prior_moves_between_the_experts(finished):  # noqa: F811
    client = fedms.load(finished(), "client-0")
    for prior in (0, 1):
        assert [each.local_weight for each in client.predict(TEXTS, prior)] == [prior] * 3
    assert client.predict(TEXTS) == client.predict(TEXTS, 0.5), "the run's own"
    client.personal.evidence_scales = UNSCALED  # else each prior trusts the evidence as far as it should
    low, high = (client.predict(TEXTS, prior) for prior in (0.2, 0.8))
    assert all(global_weight(a) > global_weight(b) for a, b in zip(low, high, strict=True))


def test_the_data_set_is_not_needed(finished, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(finished(), run)
    config = RunFolder(run).config()
    (run / "config.yaml").write_text(
        config.model_copy(update={"data": config.data.model_copy(update={"source": "/gone"})}).to_yaml()
    )
    assert len(fedms.load(run, "client-2").predict(TEXTS)) == 3


def test_pictures_come_as_files_or_decoded(finished, tmp_path):  # noqa: F811
    client = fedms.load(finished(family="vit"), "client-0")
    picture = Image.new("L", (50, 30), 200)
    picture.save(tmp_path / "grey.png")
    from_file, from_text, decoded = client.predict(
        [tmp_path / "grey.png", str(tmp_path / "grey.png"), picture]
    )
    assert from_file == from_text == decoded
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name, message in (("broken.png", "cannot read the image"), ("gone.png", "No such file")):
        with pytest.raises(FedmsError, match=message) as caught:
            client.predict([tmp_path / name])
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["client-9", "../client-0", "", ".", "client-0/", "/etc"])
def test_a_client_that_is_not_there(finished, name):  # noqa: F811
    with pytest.raises(FedmsError, match=r"no client .*there are 3: client-0, client-1, client-2") as caught:
        fedms.load(finished(), name)
    assert "\n" not in str(caught.value)


def test_what_is_no_finished_run(finished, tmp_path):  # noqa: F811
    with pytest.raises(FedmsError, match="no such folder"):
        fedms.load(tmp_path / "gone", "client-0")
    with pytest.raises(FedmsError, match="not a finished run"):
        fedms.load(tmp_path, "client-0")
    run = tmp_path / "run"
    shutil.copytree(finished(), run)
    model = run / "clients" / "client-0" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(FedmsError, match="damaged"):
        fedms.load(run, "client-0")
    (run / "result.json").write_text("{}")
    with pytest.raises(FedmsError, match="damaged"):
        fedms.load(run, "client-1")


def test_what_cannot_be_asked(finished):  # noqa: F811
    client = fedms.load(finished(), "client-0")
    for prior in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="from 0 to 1"):
            client.predict(TEXTS, prior)
    with pytest.raises(TypeError, match="list"):
        client.predict("turn on the light")
    with pytest.raises(FedmsError, match="input 2: the model reads texts, not Image"):
        client.predict(["on", Image.new("RGB", (9, 9))])
    with pytest.raises(ConfigError, match="prior: has no meaning for method fedavg"):
        fedms.load(finished(method="fedavg"), "client-0").predict(TEXTS, 0.5)


def test_an_explanation_adds_up_to_the_prediction(finished):  # noqa: F811
    client = fedms.load(finished(), "client-0", device="cpu")
    for prior in (None, 0.8):
        explained = client.explain(TEXTS, prior)
        assert [each.prediction for each in explained] == client.predict(TEXTS, prior)
        for each in explained:
            weight, odds = each.prediction.local_weight, each.prior / (1 - each.prior)
            assert each.evidence is not None and each.evidence_scale is not None and weight is not None
            expected = 1 / (1 + np.exp(-each.evidence_scale * each.evidence) / odds)
            assert weight == pytest.approx(expected, abs=1e-5)
            everyone, own = each.global_probabilities, each.local_probabilities
            assert everyone is not None and own is not None
            for name, probability in each.prediction.probabilities.items():
                mixed = (1 - weight) * everyone[name] + weight * own[name]
                assert probability == pytest.approx(mixed, abs=1e-5)
    alone = fedms.load(finished(method="fedavg"), "client-0").explain(TEXTS)[0]
    assert (alone.evidence, alone.global_probabilities, alone.local_probabilities) == (None, None, None)


def test_a_device_that_is_not_there_is_one_line(finished):  # noqa: F811
    for device in ("tpu", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(FedmsError, match=f"^device: {device} is not available here; allowed: auto, "):
            fedms.load(finished(), "client-0", device=device)


def test_a_model_of_an_earlier_form_is_named(finished, tmp_path):  # noqa: F811
    shutil.copytree(finished(), tmp_path / "run")
    path = tmp_path / "run" / "clients" / "client-0" / "model.safetensors"
    arrays, facts = read_arrays(path)
    old = {name: array for name, array in arrays.items() if name != "discriminant.covariance"}
    old["discriminant.precision"] = torch.eye(32)
    old["discriminant.numbers"] = torch.ones(1, dtype=torch.float64)
    write_arrays(path, old, facts)
    with pytest.raises(FedmsError, match=r"made by an earlier fedms, .*; run the experiment again$"):
        fedms.load(tmp_path / "run", "client-0")


# --- a model that has moved ----------------------------------------------------------------------


def test_a_model_that_has_moved_is_named(finished, checkpoint, tmp_path, monkeypatch):  # noqa: F811
    shutil.copytree(checkpoint("bert"), tmp_path / "place" / "bert")
    shutil.copytree(finished(), tmp_path / "run")
    config = RunFolder(tmp_path / "run").config()
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": "place/bert"})})
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["model_folder"] == str(checkpoint("bert"))
    environment["model_folder"] = str(tmp_path / "place" / "bert")
    (tmp_path / "run" / "environment.json").write_text(json.dumps(environment))
    expected = fedms.load(finished(), "client-0").predict(TEXTS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert fedms.load(tmp_path / "run", "client-0").predict(TEXTS) == expected
    (tmp_path / "place").rename(tmp_path / "moved")
    with pytest.raises(FedmsError, match=r"place/bert: there is no such folder; if it has moved, .*--model"):
        fedms.load(tmp_path / "run", "client-0")
    for model in (tmp_path / "moved" / "bert", "../moved/bert"):
        assert fedms.load(tmp_path / "run", "client-0", model=model).predict(TEXTS) == expected
    with pytest.raises(FedmsError, match=r"model \.\./gone: there is no such folder$"):
        fedms.load(tmp_path / "run", "client-0", model="../gone")


# --- the public face -----------------------------------------------------------------------------


def test_the_package_opens_at_once():
    heavy = {"torch", "pydantic", "numpy", "fedms.runs.predict"}
    code = f"import sys, fedms; assert not {heavy} & set(sys.modules); fedms.Config; fedms.Client"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert all(hasattr(fedms, name) for name in fedms.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedms.nothing  # noqa: B018


def test_run_takes_a_mapping_a_file_or_a_config(finished, tmp_path, monkeypatch):  # noqa: F811
    from fedms.experiments import experiment

    asked = []
    config = RunFolder(finished()).config()

    def run(*given, **also):
        asked.append(given)
        return {"seed": given[0].seed}

    monkeypatch.setattr(experiment, "run", run)
    for each in (
        config,
        finished() / "config.yaml",
        str(finished() / "config.yaml"),
        config.model_dump(mode="json"),
    ):
        assert fedms.run(each, str(tmp_path / "out"), report=False) == {"seed": 0}
    assert all(given[:2] + given[3:] == (config, tmp_path / "out", None, False) for given in asked)
    assert all(type(given[2]) is Silent for given in asked), "nobody watches outside a notebook"


# --- export --------------------------------------------------------------------------------------


def program_of(folder: Path) -> Any:
    """The module predictor.py of an export."""
    spec = importlib.util.spec_from_file_location("predictor", folder / "predictor.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "changes", [*MIXTURES.values(), *ALONE.values(), *COMPARED.values(), {"family": "vit"}], ids=str
)
def test_an_export_predicts_as_its_run(finished, tmp_path, monkeypatch, changes):  # noqa: F811
    """By predictor.py without fedms and PEFT, from a folder that was moved, and by `fedms.load`."""
    client = fedms.load(finished(**changes), "client-1")
    files = export_client(client, tmp_path / "deep" / "out").files
    assert all(path.is_file() for path in files) and len(files) == sum(
        path.is_file() for path in (tmp_path / "deep").rglob("*")
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"], "nothing temporary is left"
    place = (tmp_path / "deep" / "out").rename(tmp_path / "moved")
    samples: list[Any] = [*TEXTS, "play music " * 9]
    if client.kind == "image":
        samples = [Image.new("RGB", (40, 40), shade) for shade in ("white", "red", "black")]
    base = client.personal.config.model.name
    opened = fedms.load(place, model=base)
    with monkeypatch.context() as without:
        for name in ("fedms", "peft"):
            without.setitem(sys.modules, name, None)
        predictor = program_of(place).Predictor(base=base, batch_size=2)
    assert predictor.labels == list(opened.classes) == list(client.classes)
    for prior in (None, 0.0, 0.9) if (place / "gate.json").exists() else (None,):
        expected = client.predict_proba(samples, prior)
        found = predictor.probabilities(samples, prior)
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(opened.predict_proba(samples, prior), expected, atol=1e-5, rtol=1e-4)
        for mine, theirs in zip(opened.explain(samples, prior), client.explain(samples, prior), strict=True):
            assert mine.prediction.label == theirs.prediction.label and mine.prior == theirs.prior
            assert mine.evidence == pytest.approx(theirs.evidence, abs=1e-3)
            assert mine.evidence_scale == pytest.approx(theirs.evidence_scale)
            assert mine.global_probabilities == pytest.approx(theirs.global_probabilities, abs=1e-5)


def test_an_export_says_what_its_gate_is(finished, tmp_path):  # noqa: F811
    export_client(fedms.load(finished(), "client-0"), tmp_path / "out")
    gate = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert (gate["client"], gate["kind"], gate["prior"], gate["evidence"], gate["features"]) == (
        "client-0",
        "learned",
        0.5,
        "statistics",
        "global",
    )
    assert set(gate["formulas"]) == {"mixture", "local_weight", "u", "log_r", "delta"}
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == [
        "lights_off",
        "lights_on",
        "music",
        "volume",
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("global", "local", "gate.json", "gate.safetensors", "labels.json", "README.md"),
        *("export.json", "predictor.py"),
    }


def test_an_export_of_a_count_gate_holds_the_counts(finished, tmp_path):  # noqa: F811
    client = fedms.load(finished(**COMPARED["counts"]), "client-1")
    export_client(client, tmp_path / "out")
    gate = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert (
        gate["kind"] == "counts"
        and gate["prior"] == 0.7
        and gate["counts"] == client.personal.arrays["own.counts"].tolist()
    )
    assert set(gate) == {"client", "kind", "prior", "mixture_on", "counts", "strength", "formulas"}
    assert "sum_c softmax(global logits)_c n_c / (n_c + 2)" in gate["formulas"]["local_weight"]
    assert not (tmp_path / "out" / "gate.safetensors").exists()


def test_an_exports_page_says_where_the_label_prior_is(finished, tmp_path):  # noqa: F811
    export_client(fedms.load(finished(method="fedavg-prior"), "client-1"), tmp_path / "out")
    assert (
        "predicts alone, with this client's label prior in its head's bias."
        in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize(("method", "why"), NO_ADAPTER.items())
def test_what_is_no_adapter_is_refused_in_one_line(finished, tmp_path, method, why):  # noqa: F811
    with pytest.raises(FedmsError) as caught:
        export_client(fedms.load(finished(method=method), "client-0"), tmp_path / "out")
    assert str(caught.value) == f"method {method} {why}, so there is nothing that PEFT could load"
    assert not list(tmp_path.iterdir())


def test_an_export_is_whole_or_not_at_all(finished, tmp_path, monkeypatch):  # noqa: F811
    client = fedms.load(finished(), "client-0")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(FedmsError, match="--to"):
            export_client(client, tmp_path / name)
    (tmp_path / "empty").mkdir()
    export_client(client, tmp_path / "empty")
    with pytest.raises(FedmsError, match="trains no expert"):
        export_client(fedms.load(finished(method="statistics"), "client-0"), tmp_path / "none")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedms.runs.export.export.card", full)
    with pytest.raises(OSError, match="No space"):
        export_client(client, tmp_path / "broken")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file", "empty"}


@pytest.mark.parametrize("changes", [{}, {"family": "vit"}, {"method": "fedavg"}], ids=str)
def test_an_export_names_no_place_of_this_machine(finished, tmp_path, changes):  # noqa: F811
    client = fedms.load(finished(**changes), "client-0")
    files = export_client(client, tmp_path / "out").files
    model = Path(client.personal.config.model.name)
    for path in files:
        data = path.read_bytes()
        assert not any(str(place).encode() in data for place in (model, model.parent, tmp_path, Path.home()))
    for path in (tmp_path / "out").glob("*/adapter_config.json"):
        assert json.loads(path.read_text())["base_model_name_or_path"] == model.name
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"a folder that was called `{model.name}`" in page
    assert "or the environment variable `BASE_MODEL`, names the frozen model's folder." in page
    with pytest.raises(ValueError, match=f"BASE_MODEL; it was called {model.name}"):
        program_of(tmp_path / "out").Predictor()
    with pytest.raises(FedmsError, match=rf"model {model.name}: was a folder; name it with --model \(model="):
        fedms.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("somebody/some-encoder", "somebody/some-encoder"),
        ("some-encoder", "some-encoder"),
    ],
)
def test_an_export_names_the_model_of_the_hub(finished, checkpoint, tmp_path, name, said):  # noqa: F811
    shutil.copytree(finished(), tmp_path / "run")
    config = RunFolder(tmp_path / "run").config()
    named = config.model_copy(update={"model": config.model.model_copy(update={"name": name})})
    (tmp_path / "run" / "config.yaml").write_text(named.to_yaml())
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    (tmp_path / "run" / "environment.json").write_text(json.dumps(environment | {"model_folder": None}))
    client = fedms.load(tmp_path / "run", "client-0", model=checkpoint("bert"))
    export_client(client, tmp_path / "out")
    for path in (tmp_path / "out").glob("*/adapter_config.json"):
        assert json.loads(path.read_text())["base_model_name_or_path"] == said
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"base_model: {said}\n" in page and f"It takes `{said}` from the hub" in page


def test_an_exports_program_reads_pictures_as_fedms_does(finished, tmp_path):  # noqa: F811
    client = fedms.load(finished(family="vit"), "client-0")
    export_client(client, tmp_path / "out")
    picture = program_of(tmp_path / "out").picture
    noise = Image.effect_noise((40, 30), 60)
    for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        noise.convert(mode).save(path)
        assert picture(path).tobytes() == upright(Image.open(path)).tobytes(), mode
    turned = Image.Exif()
    turned[274] = 6
    noise.save(tmp_path / "turned.jpg", exif=turned)
    assert picture(tmp_path / "turned.jpg").size == (30, 40)
    ramp = np.array([[0, 1, 257, 258, 32768, 65534, 65535]], np.uint16)
    for name, dtype in (("deep.png", "u2"), ("deep.tif", "u2"), ("big.tif", ">u2")):
        Image.fromarray(ramp.astype(dtype)).save(tmp_path / name)
        grey = np.array([[0, 0, 1, 1, 128, 255, 255]], np.uint8)
        assert np.array_equal(np.asarray(picture(tmp_path / name)), np.stack([grey] * 3, axis=2)), name
    Image.fromarray(np.array([[0, 0.25, 1]], np.float32)).save(tmp_path / "float.tif")
    assert np.asarray(picture(tmp_path / "float.tif"))[0, :, 0].tolist() == [0, 64, 255]
    for name, dtype in (("wide.tif", "f4"), ("whole.tif", "i4")):
        Image.fromarray(ramp.astype(dtype)).save(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: cannot read the image: pixels outside 0 to"):
            picture(tmp_path / name)
