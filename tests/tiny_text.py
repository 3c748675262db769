"""A tiny random Llama with a tokenizer of whole words, and texts of three clients."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from fedms.config import Config, load_config

WORDS = ("<pad>", "<s>", "</s>", "<unk>", *"abcdefgh", "says", "asks", ":")
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": len(WORDS) + 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def word_tokenizer() -> Any:
    """A tokenizer of whole words, with tokens of start and end that it does not add by itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def write_llama(folder: Path, tied: bool = True) -> Any:
    """The model, saved into the folder with its tokenizer."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return model


def write_speeches(path: Path) -> None:
    """Three speakers; each goes through the letters in steps of its own."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["speaker", "line", "reply"])
        for step, speaker in enumerate(("ann", "bob", "cyd"), 1):
            for _ in range(40):
                at, count = draw.randrange(8), draw.randint(4, 12)
                letters = ["abcdefgh"[(at + step * place) % 8] for place in range(count)]
                rows.writerow([speaker, f"{letters[0]} asks :", " ".join(letters[1:])])


def text_config(model: Path, source: Path, *overrides: str) -> Config:
    """Both stages, one round each."""
    values: dict[str, Any] = {
        "task": "text",
        "model": {"name": str(model), "max_length": 24},
        "data": {"source": str(source), "prompt": "{line}", "answer": "{reply}"},
        "partition": {"clients": 3, "rule": "column", "column": "speaker", "alpha": None},
        "federation": {"cohort": 2, "rounds_global": 2, "rounds_local": 1},
        "training": {"learning_rate": 0.02, "local_learning_rate": 0.02, "epochs": 2},
        "activation": {"blocks": 2},
        "lora": {"rank": 4},
        "engine": {"workers": 1},
    }
    return load_config(values, overrides)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model; do not change it."""
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    return folder


@pytest.fixture(scope="session")
def speeches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the texts."""
    path = tmp_path_factory.mktemp("speeches") / "speeches.csv"
    write_speeches(path)
    return path
