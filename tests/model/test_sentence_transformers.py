"""A model's own pooling and prompt are read, and what it declares beyond an encoder is set straight or
refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import FedmsError
from fedms.data.sources import Dataset
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone
from fedms.training.inputs import inputs_for

Pooling = Literal["auto", "mean", "cls", "last"]
TEXTS = ["turn on the light", "play music", "off please the kitchen lights louder"]


@pytest.fixture
def folder(checkpoint, tmp_path: Path) -> Path:
    """A tiny BERT of its own."""
    return Path(shutil.copytree(checkpoint("bert"), tmp_path / "model"))


def declare(folder: Path, pooling: dict[str, Any], prompts: dict[str, Any] | None = None, *more: str) -> None:
    kinds = ("Transformer", "Pooling", *more)
    modules = [
        {
            "idx": number,
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def load(folder: Path, pooling: Pooling = "auto") -> Backbone:
    return load_backbone(ModelConfig(name=str(folder), pooling=pooling), LoraConfig())


def features(backbone: Backbone, folder: Path, texts: list[str]) -> torch.Tensor:
    """One by one: no padding can play a part."""
    none = np.zeros(len(texts), dtype=np.int64)
    inputs = inputs_for(
        Dataset("text", texts, none, ("a", "b"), {}, None), backbone, ModelConfig(name=str(folder))
    )
    with torch.no_grad():
        return torch.cat([backbone.feature(*inputs.batch(np.array([row]))) for row in range(len(texts))])


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
    ids=str,
)
def test_the_pooling_is_the_models_own_unless_the_config_names_one(folder, said, pooling):
    declare(folder, said, None, "Normalize")
    found = features(load(folder), folder, TEXTS)
    assert torch.equal(found, features(load(folder, pooling), folder, TEXTS))
    other: Pooling = "mean" if pooling != "mean" else "cls"
    assert not torch.allclose(found, features(load(folder, other), folder, TEXTS), atol=1e-3)


def test_the_last_token_is_the_last_real_one_whatever_is_padded(folder):
    backbone = load(folder, "last")
    none = np.zeros(len(TEXTS), dtype=np.int64)
    inputs = inputs_for(
        Dataset("text", TEXTS, none, ("a", "b"), {}, None), backbone, ModelConfig(name=str(folder))
    )
    with torch.no_grad():
        together = backbone.feature(*inputs.batch(np.arange(len(TEXTS))))
    torch.testing.assert_close(together, features(backbone, folder, TEXTS), atol=1e-5, rtol=1e-4)


def test_the_default_prompt_precedes_every_text(folder):
    prompts = {"prompts": {"query": "turn the ", "other": "off "}, "default_prompt_name": "query"}
    plain = features(load(folder), folder, [f"turn the {text}" for text in TEXTS])
    declare(folder, {"pooling_mode_mean_tokens": True}, prompts)
    assert torch.equal(features(load(folder), folder, TEXTS), plain)
    declare(folder, {"pooling_mode_mean_tokens": True}, prompts | {"default_prompt_name": None})
    assert not torch.equal(features(load(folder), folder, TEXTS), plain)


REFUSED = [
    (
        {"pooling_mode_max_tokens": True},
        None,
        (),
        "it pools by pooling_mode_max_tokens; fedms knows mean, cls and last",
    ),
    (
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        None,
        (),
        "it pools by mean and cls",
    ),
    (
        {"pooling_mode_mean_tokens": True},
        None,
        ("Dense",),
        "its modules.json names the module Dense; fedms runs none",
    ),
    ({"pooling_mode_mean_tokens": True}, {"default_prompt_name": "gone"}, (), "cannot be read"),
]


@pytest.mark.parametrize(("said", "prompts", "more", "told"), REFUSED, ids=[each[3][:30] for each in REFUSED])
def test_what_cannot_be_done_is_one_line(folder, said, prompts, more, told):
    declare(folder, said, prompts, *more)
    with pytest.raises(FedmsError, match=told) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert load(folder, "mean").pooling == "mean", "whoever names a pooling has it"


@pytest.mark.parametrize("key", ["is_decoder", "add_cross_attention"])
def test_a_decoder_is_refused_with_the_way_out(folder, key):
    path = folder / "config.json"
    declared = json.loads(path.read_text()) | {"is_decoder": True, key: True}
    path.write_text(json.dumps(declared | {} if key == "is_decoder" else declared | {"is_decoder": False}))
    with pytest.raises(FedmsError, match=f"its config.json says {key}: true; fedms runs encoders"):
        load(folder)


def test_feed_forward_in_chunks_gives_one_text_the_same_alone_and_in_a_batch(folder):
    whole = features(load(folder), folder, TEXTS)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chunk_size_feed_forward": 3}))
    assert torch.equal(features(load(folder), folder, TEXTS), whole)
