"""Class names among pictures: by the text towers of CLIP and SigLIP, as transformers computes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

import fedms
from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import ConfigError
from fedms.experiments import experiment
from fedms.federation.world import open_backbone
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone
from fedms.training.inputs import class_name_embeddings
from tiny_models import SIZES, tiny_model, word_tokenizer
from tiny_run import run_config, write_pictures

NAMES = ["kitchen_light", "music"]
PROMPTS = ("a {class} on", "play {class} please")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both models, each with a tokenizer and an image processor."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("clip", "siglip")}
    tiny_model("clip").save_pretrained(made["clip"])
    torch.manual_seed(0)
    words = SIZES | {"intermediate_size": 64, "vocab_size": 40, "max_position_embeddings": 24}
    picture = SIZES | {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config: Any = transformers.SiglipConfig(
        text_config=words | {"projection_size": 32}, vision_config=picture
    )
    transformers.SiglipModel(config).save_pretrained(made["siglip"])
    for folder in made.values():
        word_tokenizer().save_pretrained(folder)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return made


def opened(folder: Path, pooling: Any = "auto") -> Backbone:
    return load_backbone(ModelConfig(name=str(folder), pooling=pooling), LoraConfig())


@torch.no_grad()
@pytest.mark.parametrize(("family", "pooling"), [("clip", "auto"), ("siglip", "own")])
def test_pictures_and_class_names_lie_where_transformers_has_them(folders, family, pooling):
    model: Any = transformers.AutoModel.from_pretrained(folders[family]).eval()
    backbone = opened(folders[family], pooling)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images = model.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(backbone.feature(pixels, None), images, atol=1e-5, rtol=1e-5)

    def theirs(template: str) -> torch.Tensor:
        texts = [template.replace("{class}", name.replace("_", " ")) for name in NAMES]
        padding: Any = "max_length" if family == "siglip" else True
        given = word_tokenizer()(texts, padding=padding, max_length=24, truncation=True, return_tensors="pt")
        given.pop("token_type_ids", None)
        return model.get_text_features(**given).pooler_output  # type: ignore[no-any-return]

    config = ModelConfig(name=str(folders[family]), pooling=pooling)
    found = class_name_embeddings(NAMES, backbone, config)
    assert torch.equal(found, theirs("a photo of a {class}."))
    averaged = class_name_embeddings(NAMES, backbone, config, PROMPTS)
    expected = torch.stack([F.normalize(theirs(each), dim=1) for each in PROMPTS]).mean(0)
    assert torch.equal(averaged, expected) and not torch.equal(found, averaged)


def test_text_models_embed_class_names_in_templates_too(checkpoint):
    backbone = opened(checkpoint("bert"))
    config = ModelConfig(name=str(checkpoint("bert")))
    plain = class_name_embeddings(NAMES, backbone, config)
    assert torch.equal(class_name_embeddings(NAMES, backbone, config, ["{class}"]), plain)
    framed = class_name_embeddings(["on", "off"], backbone, config, ["turn {class} please"])
    whole = class_name_embeddings(["turn on please", "turn off please"], backbone, config)
    assert torch.equal(framed, whole)


@pytest.mark.parametrize(
    ("family", "pooling", "line"),
    [
        (
            "vit",
            "auto",
            r"head\.kind: text needs a text model, CLIP or SigLIP; with \S+ allowed: ",
        ),
        ("siglip", "auto", r"head\.kind: text needs model\.pooling: own with \S+, not mean$"),
        ("clip", "mean", r"head\.kind: text needs model\.pooling: cls with \S+, not mean$"),
        ("vit", "own", r"model\.pooling: own needs a SigLIP with its head; allowed: mean, cls, last$"),
    ],
)
def test_what_has_no_place_for_class_names(folders, checkpoint, tmp_path, family, pooling, line):
    folder = folders.get(family) or checkpoint(family)
    config = run_config(folder, tmp_path, head__kind="text", model__pooling=pooling)
    with pytest.raises(ConfigError, match=f"^{line}"):
        open_backbone(config)


def test_a_run_on_pictures_begins_with_class_names(folders, tmp_path):
    """And trains nothing of the head but its scale."""
    write_pictures(tmp_path / "pictures")
    model = Path(shutil.copytree(folders["clip"], tmp_path / "model"))
    changes = {"head__kind": "text", "method": "fedavg", "head__prompt": ("a {class} light",)}
    config = run_config(model, tmp_path / "pictures", data__limit=40, **changes)
    experiment.run(config, tmp_path / "run")
    client = fedms.load(tmp_path / "run", "client-0")
    names = class_name_embeddings(client.classes, opened(model), config.model, config.head.prompt)
    head = client.personal.arrays["global/head.weight"]
    torch.testing.assert_close(F.normalize(head, dim=1), F.normalize(names, dim=1))
