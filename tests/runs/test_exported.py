"""Exports as clients, and experts that are merged into their model."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import fedms
from fedms.config import load_config
from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.model.checkpoints import load_backbone
from fedms.model.expert import Expert
from fedms.model.heads import head
from fedms.model.parts import fresh_lora
from fedms.model.peft import read_tensors
from fedms.runs.export.export import export_client
from fedms.runs.export.merged import write_merged
from tiny_models import word_tokenizer
from tiny_run import finished  # noqa: F401 (a fixture)

TEXTS = ["turn on the light", "play music please", "off"]


@pytest.fixture(scope="module")
def export(finished, tmp_path_factory):  # noqa: F811
    """The export of a client, beside a run's own client; do not change it."""
    client = fedms.load(finished(), "client-1")
    place = tmp_path_factory.mktemp("export") / "client-1"
    export_client(client, place)
    return client, place


def test_an_export_is_opened_by_its_folder_or_by_a_clients_name(export):
    client, place = export
    base = client.personal.config.model.name
    for folder, name in ((place, None), (place, "client-1"), (place.parent, "client-1")):
        opened = fedms.load(folder, name, model=base)
        assert (opened.name, opened.prior, opened.figures) == ("client-1", 0.5, client.figures)
        assert opened.hub_name is None and opened.figures["accuracy_local"] > 0
    with pytest.raises(FedmsError, match="is the export of client-1, not of client-2"):
        fedms.load(place, "client-2", model=base)
    with pytest.raises(FedmsError, match="no such folder"):
        fedms.load(place, model="/gone")


def test_an_export_of_an_export_is_the_same(export, tmp_path):
    client, place = export
    opened = fedms.load(place, model=client.personal.config.model.name)
    export_client(opened, tmp_path / "again")
    for path in (each for each in place.rglob("*") if each.is_file()):
        other = tmp_path / "again" / path.relative_to(place)
        if path.suffix == ".safetensors":
            one, two = (read_tensors(each) for each in (path, other))
            assert one.keys() == two.keys()
            assert all(torch.allclose(one[name], two[name], rtol=1e-6) for name in one)
        else:
            assert path.read_bytes() == other.read_bytes(), path.name


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("export.json", {"format": 9}, "was written by another fedms, in format 9"),
        ("export.json", {"experts": None}, r"export\.json: damaged: not an export's"),
        ("export.json", {"config": {}}, r"export\.json: damaged: not an export's"),
        ("export.json", {"method": {"name": "x"}}, r"export\.json: damaged: method 'x'"),
        (
            "export.json",
            {"identity": {"weights": "", "declaration": "", "preprocessing": ""}},
            "is not that of",
        ),
        ("export.json", {"boundary": 99}, "damaged: its files do not fit"),
        ("gate.json", {"evidence_scales": 3}, r"export\.json: damaged: not an export's"),
    ],
)
def test_a_damaged_export_is_one_line(export, tmp_path, file, change, message):
    client, place = export
    shutil.copytree(place, tmp_path / "bad")
    path = tmp_path / "bad" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FedmsError, match=message) as caught:
        fedms.load(tmp_path / "bad", model=client.personal.config.model.name)
    assert "\n" not in str(caught.value)


def test_the_predictor_needs_torch_transformers_and_safetensors_alone(export):
    tree = ast.parse((export[1] / "predictor.py").read_text())
    heads = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    named = {
        name.split(".")[0]
        for node in heads
        for name in (
            [str(node.module)] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
        )
    }
    assert named - {*sys.stdlib_module_names} == {"torch", "transformers", "safetensors"}


def test_the_card_says_what_it_is_and_what_it_gives_away(export):
    page = (export[1] / "README.md").read_text()
    figures = export[0].figures
    for said in (
        "library_name: peft\npipeline_tag: text-classification",
        "Method `fedms`: ",
        "1 global rounds and 1 local rounds, seed 0",
        f"| accuracy on its own test data | {round(figures['accuracy_local'], 4)} |",
        f"| training samples | {figures['samples']} |",
        "gate.safetensors holds this client's label shares",
    ):
        assert said in page


# --- merged --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expert", "prior"),
    [
        ({}, "global", 0.0),
        ({}, "local", 1.0),
        ({"method": "fedavg-prior"}, "global", None),
        ({"method": "linear-probe"}, "global", None),
        ({"gate__evidence": "none", "federation__aggregation": "exact"}, "global", 0.0),
        ({"family": "vit"}, "local", 1.0),
    ],
    ids=str,
)
def test_a_merged_expert_predicts_as_in_the_mixture(finished, tmp_path, changes, expert, prior):  # noqa: F811
    client = fedms.load(finished(**changes), "client-1")
    done = export_client(client, tmp_path / "out", expert)
    assert done.note is not None and done.note in (tmp_path / "out" / "README.md").read_text()
    image = client.kind == "image"
    samples = [Image.new("RGB", (40, 40), shade) for shade in ("black", "red")] if image else TEXTS
    expected = client.predict_proba(samples, prior)
    found = fedms.load(tmp_path / "out").predict_proba(samples)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)
    assert not list((tmp_path / "out").rglob("adapter_*"))
    config = load_config({"model": {"name": str(tmp_path / "out")}})
    merged = load_backbone(config.model, config.lora)
    assert merged.depth == client.backbone.depth, "it can be the model of another run"
    assert str(finished(**changes).parent) not in "".join(
        path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".md")
    )


def test_an_expert_that_does_not_predict_is_not_merged(finished, tmp_path):  # noqa: F811
    client = fedms.load(finished(method="fedavg"), "client-1")
    line = "--merged: method fedavg does not predict with a local expert; allowed: global"
    with pytest.raises(ConfigError, match=line):
        export_client(client, tmp_path / "out", "local")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pipeline_takes_a_merged_modernbert_with_its_head(tmp_path, pooling):
    torch.manual_seed(0)
    config: Any = transformers.ModernBertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=40,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    model: Any = transformers.ModernBertModel(config)
    with torch.no_grad():
        model.final_norm.weight.add_(torch.randn(32), alpha=0.3)
    model.save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    run = load_config({"model": {"name": str(tmp_path / "base"), "pooling": pooling}, "lora": {"rank": 2}})
    backbone = load_backbone(ModelConfig(name=str(tmp_path / "base"), pooling=pooling), LoraConfig(rank=2))
    drawn = torch.Generator().manual_seed(1)
    arrays = fresh_lora(backbone, [1], 2, 0)
    arrays |= {name: torch.randn(each.shape, generator=drawn) for name, each in arrays.items()}
    arrays |= head(torch.randn(3, 32, generator=drawn), torch.randn(3, generator=drawn), -0.7)
    note = write_merged(tmp_path / "out", arrays, backbone, run, ["on", "off", "play"])
    assert note is None
    expert = Expert(arrays, run.lora.alpha / run.lora.rank)
    backbone.attach(expert.pairs())
    tokenizer = word_tokenizer()
    classify: Any = transformers.pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = expert.logits(backbone.feature(ids, None)).softmax(1)[0]
        found = {each["label"]: each["score"] for each in classify([text])[0]}
        for label, probability in zip(["on", "off", "play"], expected.tolist(), strict=True):
            assert found[label] == pytest.approx(probability, abs=1e-5)
    assert Path(tmp_path / "out" / "model.safetensors").exists()
