"""Tiny random models, made-up data, and whole runs on them: each distinct run is done once for all tests."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import misbehaving
import pytest
import torch
from outcomes import TIMES

from fedms.config import Config, load_config
from fedms.engines import host, local
from fedms.experiments import experiment
from fedms.federation.client import ClientHost
from fedms.federation.messages import Task, Update

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
TOPICS = {
    "lights": "lamp bulb bright dim switch glow shade dark",
    "music": "song album play louder band tune singer radio",
    "weather": "rain sunny wind cloud storm forecast snow warm",
    "timer": "minutes alarm seconds countdown clock wake hour stop",
}
FILLER = ["please", "the", "my", "now", "in", "a", "can", "you", "for", "this", "room", "house", "today"]
Configure = Callable[..., Config]


def sentences(each: int = 36) -> list[str]:
    """CSV rows: a text, its class, and the home it was said in."""
    draw = random.Random(0)
    rows = []
    for label, words in TOPICS.items():
        for number in range(each):
            words_of_it = draw.choices(words.split(), k=draw.randint(2, 4)) + draw.choices(
                FILLER, k=draw.randint(0, 4)
            )
            draw.shuffle(words_of_it)
            rows.append(f"{' '.join(words_of_it)},{label},home {number % 2}")
    return rows


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of three blocks with a WordPiece vocabulary of the topics' words and single letters."""
    import transformers as hf
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [word for text in TOPICS.values() for word in text.split()[:6]] + FILLER
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *dict.fromkeys([*letters, *(f"##{letter}" for letter in letters), *words]),
    ]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("bert")
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    hf.BertModel(
        hf.BertConfig(**SIZES, vocab_size=len(vocabulary), max_position_embeddings=48)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT of three blocks with an image processor."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    hf.ViTModel(hf.ViTConfig(**SIZES, image_size=32, patch_size=8)).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """144 made-up sentences of four classes."""
    path = tmp_path_factory.mktemp("corpus") / "said.csv"
    path.write_text("\n".join(["text,label,home", *sentences()]) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny(text_model: Path, corpus: Path) -> Configure:
    """Four clients, two rounds of each stage, in this process; overrides as on the command line."""
    base = {
        "model": {"name": str(text_model), "max_length": 24},
        "data": {"source": str(corpus)},
        "partition": {"clients": 4, "alpha": 0.5},
        "federation": {"cohort": 2, "rounds_global": 2, "rounds_local": 2},
        "training": {"batch_size": 16, "learning_rate": 0.01},
        "activation": {"rule": "every", "every": 1},
        "lora": {"rank": 2},
        "engine": {"workers": 1},
    }
    return lambda *overrides: load_config(base, overrides)


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def rounds(self, stage: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["stage"] == stage]

    @property
    def outcome(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Result and rounds, less what may differ between two runs of one config."""
        end = {key: value for key, value in self.result.items() if key not in TIMES}
        return end, [{key: value for key, value in line.items() if key not in TIMES} for line in self.lines]


@pytest.fixture(scope="session")
def perform(tiny: Configure, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Run a config; keywords are those of `fedms.experiments.experiment.run`."""

    def run(*overrides: str, **more: Any) -> Run:
        out = tmp_path_factory.mktemp("runs") / "run"
        experiment.run(tiny(*overrides), out, **more)
        return Run(out)

    return run


@pytest.fixture(scope="session")
def finished(perform: Callable[..., Run]) -> Callable[..., Run]:
    """As `perform`, but each config once; do not write into what it gives."""
    done: dict[tuple[str, ...], Run] = {}

    def run(*overrides: str) -> Run:
        if overrides not in done:
            done[overrides] = perform(*overrides)
        return done[overrides]

    return run


class Traffic:
    """Every message that the engine carried."""

    def __init__(self) -> None:
        self.messages: list[Task | Update] = []

    @property
    def exchanges(self) -> list[tuple[Task, Update]]:
        """Each task with its answer; in one process they alternate by kind: all tasks of a round, then all
        updates.
        """
        waiting: dict[str, Task] = {}
        pairs = []
        for message in self.messages:
            if isinstance(message, Task):
                waiting[message.client] = message
            else:
                pairs.append((waiting.pop(message.client), message))
        return pairs

    def updates(self, kind: str | None = None, stage: str | None = None) -> list[Update]:
        return [
            update
            for task, update in self.exchanges
            if kind in (None, task.kind) and stage in (None, task.stage)
        ]


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    """What is sent from now on."""
    seen, encode = Traffic(), local.encode
    for side in (local, host):
        monkeypatch.setattr(
            side, "encode", lambda message: (seen.messages.append(message), encode(message))[1]
        )
    return seen


@pytest.fixture
def misbehave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Have clients fail by these rules from now on, in this process and in workers; without any, all behave
    again.
    """
    rules, site = tmp_path / "rules.json", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import misbehaving\nmisbehaving.watch_imports()\n")
    monkeypatch.setenv(misbehaving.RULES, str(rules))
    places = [str(site), str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    for name in ("handle", "receive"):
        monkeypatch.setattr(ClientHost, name, getattr(ClientHost, name))  # put back at the end
    misbehaving.around(ClientHost)

    def put(*told: misbehaving.Rule) -> None:
        for counted in tmp_path.glob("rules.json.*"):
            counted.unlink()
        rules.write_text(json.dumps([vars(rule) for rule in told]))

    put()
    return put
