"""Bad model folders: one line that names the model, only safetensors are read, and no code is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from holding import Mine, Refused
from safetensors.torch import load_file, save_file

from fedms.config.sections import LoraConfig, ModelConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CODE = "import os\nos.mkdir('executed')\n"


def remove(*names: str) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return put


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def says(name: str = "config.json", **keys: Any) -> Callable[[Path], object]:
    """Keys put into a JSON file."""

    def put(folder: Path) -> None:
        path = folder / name
        held = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(held | keys))

    return put


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return put


def both(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [step(folder) for step in steps]


def cut(share: float) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])

    return put


def pickled(name: str) -> Callable[[Path], object]:
    """The weights as a pickle that runs something, under this name, and no others."""

    def put(folder: Path) -> None:
        torch.save({**load_file(folder / WEIGHTS), "more": Mine()}, folder / name)
        (folder / WEIGHTS).unlink()

    return put


def sharded(part: str) -> Callable[[Path], object]:
    """An index that names this file for all weights."""

    def put(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        torch.save({**held, "more": Mine()}, folder / "pytorch_model.bin")
        (folder / WEIGHTS).rename(folder.parent / "other.safetensors")
        (folder / INDEX).write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(held, part)})
        )

    return put


def code(name: str = "config.json", kind: str = "AutoConfig", **keys: Any) -> Callable[[Path], object]:
    return both(
        write("mine.py", CODE),
        says(name, **{"auto_map": {kind: "mine.Mine", "AutoModel": "mine.Mine"}, **keys}),
    )


def rename_vocabulary(folder: Path) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["vocab"] |= {f"word{number}": 15 + number for number in range(100)}
    (folder / "tokenizer.json").write_text(json.dumps(told))


UNUSABLE = "no usable safetensors weights"
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (remove("config.json"), "cannot be read"),
    "empty config": (write("config.json", ""), "cannot be read"),
    "config cut short": (write("config.json", '{"model_type": "be'), "cannot be read"),
    "config is a list": (write("config.json", "[]"), "cannot be read"),
    "config of nothing": (write("config.json", "{}"), "cannot be read"),
    "config is binary": (write("config.json", b"\xff\xfe\x00"), "cannot be read"),
    "config is too deep": (write("config.json", "[" * 100_000), "cannot be read"),
    "config is a folder": (
        both(remove("config.json"), lambda folder: (folder / "config.json").mkdir()),
        "cannot be read",
    ),
    "unknown type": (says(model_type="berta"), "cannot be read"),
    "a type without blocks": (says(model_type="albert"), "family 'albert' cannot be taken apart"),
    "another type": (says(model_type="gpt2"), "weights are incomplete or misshapen"),
    "a type with its own code": (
        says(model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"}),
        "cannot be read: it brings its own code, which fedms never runs",
    ),
    "a type that is no word": (says(model_type=3), "cannot be read"),
    "a width that is no number": (says(hidden_size="wide"), "cannot be read"),
    "another width": (says(hidden_size=64), "weights"),
    "another depth": (says(num_hidden_layers=5), "weights are incomplete or misshapen: encoder.layer.3"),
    "heads that do not divide": (says(num_attention_heads=5), "model "),
    "an unknown activation": (says(hidden_act="nothing"), UNUSABLE),
    "huge": (says(num_hidden_layers=4, intermediate_size=10**12), UNUSABLE),
    "quantised": (says(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}), "model "),
    "no weights": (remove(WEIGHTS), UNUSABLE),
    "empty weights": (write(WEIGHTS, b""), UNUSABLE),
    "weights cut short": (cut(0.5), UNUSABLE),
    "weights without their end": (cut(0.99), UNUSABLE),
    "weights are no safetensors": (write(WEIGHTS, b"\xff" * 100), UNUSABLE),
    "a header without end": (write(WEIGHTS, b"\xff" * 7 + b"\x7f" + b"{}"), UNUSABLE),
    "a header that is no JSON": (write(WEIGHTS, b"\x10" + b"\0" * 7 + b"x" * 16), UNUSABLE),
    "offsets beyond the end": (
        write(
            WEIGHTS,
            b"\x40" + b"\0" * 7 + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(64),
        ),
        UNUSABLE,
    ),
    "no tensors": (weights(dict.clear), "model "),
    "a tensor missing": (
        weights(lambda held: held.pop("encoder.layer.1.attention.self.value.weight")),
        "encoder.layer.1.attention.self.value",
    ),
    "a tensor of another shape": (
        weights(lambda held: held.update({"encoder.layer.0.output.dense.weight": torch.zeros(3, 3)})),
        "encoder.layer.0.output.dense.weight|" + UNUSABLE,
    ),
    "NaN": (
        weights(lambda held: held["encoder.layer.2.output.dense.weight"].fill_(float("nan"))),
        "not finite: encoder.layer.2.output",
    ),
    "infinity": (
        weights(lambda held: held["embeddings.word_embeddings.weight"][3].fill_(float("inf"))),
        "not finite: embeddings.word",
    ),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "no tokenizer"),
    "an empty tokenizer": (write("tokenizer.json", ""), "no tokenizer"),
    "a broken tokenizer": (write("tokenizer.json", '{"model": {"type": "WordLevel"}}'), "no tokenizer"),
    "a tokenizer that is a pickle": (write("tokenizer.json", pickle.dumps(Mine())), "no tokenizer"),
    "a broken tokenizer's config": (write("tokenizer_config.json", "["), "no tokenizer"),
    "a tokenizer with more words": (rename_vocabulary, "its tokenizer has more words"),
    # what could run code
    "pickled weights": (pickled("pytorch_model.bin"), UNUSABLE),
    "pickled weights, older": (pickled("model.bin"), UNUSABLE),
    "pickled weights called .pt": (pickled("model.pt"), UNUSABLE),
    "a checkpoint": (pickled("model.ckpt"), UNUSABLE),
    "pickled weights called safetensors": (pickled("other"), UNUSABLE),
    "shards that are pickled": (sharded("pytorch_model.bin"), INDEX + " names pytorch_model.bin"),
    "shards elsewhere": (sharded("../other.safetensors"), INDEX + " names ../other.safetensors"),
    "shards at a root": (sharded("/etc/other.safetensors"), INDEX + " names /etc/other.safetensors"),
    "shards that are no names": (both(sharded("x"), says(INDEX, weight_map={"a": 3})), INDEX + " names 3"),
    "a broken index": (both(remove(WEIGHTS), write(INDEX, "{")), "cannot be read"),
    "an index of nothing": (both(remove(WEIGHTS), write(INDEX, "{}")), "cannot be read"),
    "pickled weights say what to do": (pickled("pytorch_model.bin"), "pytorch_model.bin, a pickle, which"),
    "GGUF": (both(remove(WEIGHTS), write("q4.gguf", b"GGUF")), "q4.gguf, which is for llama.cpp; name the"),
    "GGUF alone": (
        both(remove(WEIGHTS, "config.json"), write("q8.GGUF", b"GGUF")),
        "no usable safetensors weights: there is q8.GGUF",
    ),
    "an adapter alone": (
        both(
            remove(WEIGHTS, "config.json"),
            says("adapter_config.json", base_model_name_or_path="some/base"),
            write("adapter_model.safetensors", b""),
        ),
        "is an adapter and no whole model; name its base model, some/base, in model.name, and this folder in "
        "model.adapter",
    ),
    "an adapter that says nothing": (write("adapter_config.json", "["), "name its base model in model.name"),
    "an adapter beside": (
        both(write("adapter_config.json", "{}"), write("adapter_model.bin", pickle.dumps(Mine()))),
        "is an adapter",
    ),
    "its own code": (code(model_type="mine"), "cannot be read"),
    "its own tokenizer": (
        both(
            remove("tokenizer.json"),
            code(
                "tokenizer_config.json",
                "AutoTokenizer",
                tokenizer_class="Mine",
                auto_map={"AutoTokenizer": ["mine.Mine", "mine.Mine"]},
            ),
        ),
        "no tokenizer",
    ),
}


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES)
def test_a_bad_model(place: Path, refused: Refused, checkpoint, change, words):
    shutil.copytree(checkpoint("bert"), place / "bert")
    change(place / "bert")
    if words == UNUSABLE and (place / "bert" / "other").exists():
        (place / "bert" / "other").rename(place / "bert" / WEIGHTS)
    line = refused(
        ["run", "good.yaml", "--set", f"model.name={place / 'bert'}"], 1, f"model {place / 'bert'}: "
    )
    assert any(word in line for word in words.split("|")), line
    assert not list(place.rglob("executed"))


NAMES: dict[str, tuple[str, str]] = {
    "no folder": ("./nowhere", "model ./nowhere: there is no such folder"),
    "no home": ("~nobody-of-this-name/bert", "there is no such folder"),
    "no root": ("/nowhere/bert", "there is no such folder"),
    "a GGUF file": ("./q4.gguf", "model ./q4.gguf: is a file; model.name is a folder"),
    "a weights' file": ("empty.safetensors", "model empty.safetensors: is a file"),
    "a file": ("./good.yaml", "there is no such folder"),
    "empty": ("''", "model : "),
    "blank": ("' '", "model"),
    "no hub name": ("a b", "model a b: "),
    "a way up": ("../outside", "model ../outside: cannot be read"),
    "an empty folder": ("./empty", "model ./empty: cannot be read"),
    "unknown on the hub": (
        "nobody/nothing-of-this-name",
        "model nobody/nothing-of-this-name: cannot be read",
    ),
}


@pytest.mark.parametrize(("name", "words"), NAMES.values(), ids=NAMES)
def test_a_bad_name(place, refused, name, words):
    (place / "empty").mkdir()
    for file in ("q4.gguf", "empty.safetensors"):
        (place / file).touch()
    refused(["run", "good.yaml", "--set", f"model.name={name}"], 1, words)


def test_code_beside_a_known_model_is_left_alone(place, checkpoint):
    from fedms.model.checkpoints import load_backbone

    shutil.copytree(checkpoint("bert"), place / "bert")
    code()(place / "bert")
    torch.save(Mine(), place / "bert" / "pytorch_model.bin")
    assert load_backbone(ModelConfig(name="./bert"), LoraConfig()).depth == 3
    assert not list(place.rglob("executed"))


def test_the_payload_of_these_tests_does_run_where_it_is_let(place):
    torch.save(Mine(), "x.bin")
    torch.load("x.bin", weights_only=False)
    assert (place / "executed").is_dir()
