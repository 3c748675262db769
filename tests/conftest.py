"""Shared by all tests: one thread, and tiny transformers with random weights of every family that fedms
knows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedms.config.sections import LoraConfig, ModelConfig

import fedms  # noqa: F401 # isort: skip # before torch: only then are the same bits promised
import pytest
import torch

from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone

torch.set_num_threads(1)

DEPTH = 3
SIZES = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "turn",
    "on",
    "off",
    "the",
    "light",
    "lights",
    "kitchen",
    "music",
    "play",
    "louder",
    "please",
)
Checkpoint = Callable[[str], Path]


def tiny_model(family: str) -> Any:
    """A transformer of this family with no weight left at an initial zero, so that every part of it shows in
    the output.
    """
    import transformers as hf

    picture = {"image_size": 32, "patch_size": 8}
    tower = SIZES | picture | {"intermediate_size": 64, "projection_dim": 24}
    torch.manual_seed(sum(map(ord, family)))
    if family == "bert":
        model = hf.BertModel(
            hf.BertConfig(**SIZES, intermediate_size=64, vocab_size=40, max_position_embeddings=24)
        )
    elif family == "roberta":
        config = hf.RobertaConfig(
            **SIZES, intermediate_size=64, vocab_size=40, max_position_embeddings=26, pad_token_id=1
        )
        model = hf.RobertaModel(config)
    elif family == "vit":
        model = hf.ViTModel(hf.ViTConfig(**SIZES, **picture, intermediate_size=64))
    elif family == "deit":
        model = hf.DeiTModel(hf.DeiTConfig(**SIZES, **picture, intermediate_size=64))
    elif family == "dinov2":
        model = hf.Dinov2Model(hf.Dinov2Config(**SIZES, **picture, mlp_ratio=2))
    elif family == "clip_vision_model":
        model = hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**tower))
    else:
        text = SIZES | {
            "intermediate_size": 64,
            "vocab_size": 40,
            "max_position_embeddings": 24,
            "projection_dim": 24,
        }
        model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=tower, projection_dim=24))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def word_tokenizer() -> Any:
    """A tokenizer of whole words that adds [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The folder of the tiny model of a family, as `save_pretrained` writes it; written once, so do not
    change it.
    """
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny_model(family).save_pretrained(made[family])
            if family == "bert":
                word_tokenizer().save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture
def backbone(checkpoint: Checkpoint) -> Backbone:
    """A tiny BERT, fresh for each test."""
    return load_backbone(ModelConfig(name=str(checkpoint("bert"))), LoraConfig())


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
