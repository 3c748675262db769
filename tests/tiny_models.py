"""Tiny transformers with random weights of every family that fedms knows, and a tokenizer of whole words."""

from __future__ import annotations

from typing import Any

import torch

DEPTH = 3
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
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


def tiny_model(family: str) -> Any:
    """A transformer of this family with no weight left at an initial zero, so that every part of it shows in
    the output.
    """
    import transformers as hf

    picture: dict[str, Any] = {"image_size": 32, "patch_size": 8}
    tower = SIZES | picture | {"intermediate_size": 64, "projection_dim": 24}
    torch.manual_seed(sum(map(ord, family)))
    model: torch.nn.Module
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
