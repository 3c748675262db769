"""Clients that are used by many threads, and in whatever torch state the caller is."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fedms
from default_dtype import default_dtype
from fedms.core.errors import FedmsError
from fedms.runs.export.export import export_client
from tiny_run import finished  # noqa: F401 (a fixture)

TEXTS = ["turn on the light", "play music please", "off"]


def answers_by_threads(asked):
    """What each of these calls returns when all of them run at once."""
    ready = threading.Barrier(len(asked))

    def answer(ask):
        ready.wait()
        return [ask() for _ in range(4)]

    with ThreadPoolExecutor(len(asked)) as pool:
        return [future.result() for future in [pool.submit(answer, ask) for ask in asked]]


@pytest.mark.parametrize("names", [["client-0"], ["client-0", "client-1", "client-2"]])
def test_eight_threads_answer_as_one_does(finished, names):  # noqa: F811
    clients = [fedms.load(finished(), name) for name in names]
    chosen = [clients[number % len(clients)] for number in range(8)]
    texts = [[TEXTS[number % 3], "louder", *["play the music"] * number] for number in range(8)]
    asked = [partial(client.predict_proba, given) for client, given in zip(chosen, texts, strict=True)]
    expected = [ask() for ask in asked]
    for found, one in zip(answers_by_threads(asked), expected, strict=True):
        assert all(np.array_equal(each, one) for each in found)


def test_threads_of_two_runs_do_not_change_each_others_texts(finished):  # noqa: F811
    """Both have the same tokenizer, and truncate at different lengths."""
    long = ["play music " * 20] * 5
    clients = [fedms.load(finished(model__max_length=length), "client-0") for length in (5, 20)]
    asked = [partial(client.predict_proba, long) for client in clients * 4]
    expected = [ask() for ask in asked]
    for found, one in zip(answers_by_threads(asked), expected, strict=True):
        assert all(np.array_equal(each, one) for each in found)


def test_clients_of_a_model_share_its_backbone_while_they_live(finished):  # noqa: F811
    run = finished()
    first, second = (fedms.load(run, name) for name in ("client-0", "client-1"))
    other = fedms.load(finished(lora__targets=("query",)), "client-0")
    assert first.backbone is second.backbone is not other.backbone
    held = weakref.ref(first.backbone)
    del first
    gc.collect()
    assert held() is second.backbone
    del second
    gc.collect()
    assert held() is None


def test_a_model_that_has_changed_is_read_again_and_refused(finished, checkpoint, tmp_path):  # noqa: F811
    shutil.copytree(checkpoint("bert"), tmp_path / "bert")
    before = fedms.load(finished(), "client-0", model=tmp_path / "bert")
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    changed = {name: array.clone() for name, array in weights.items()}
    changed["encoder.layer.2.output.dense.bias"] += 1
    save_file(changed, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FedmsError, match="weights"):
        fedms.load(finished(), "client-0", model=tmp_path / "bert")
    save_file(weights, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
    after = fedms.load(finished(), "client-0", model=tmp_path / "bert")
    assert np.array_equal(before.predict_proba(TEXTS), after.predict_proba(TEXTS))


# the caller's torch state


AMBIENT: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("ambient", AMBIENT.values(), ids=AMBIENT)
@pytest.mark.parametrize("changes", [{}, {"method": "feddpa"}, {"family": "vit"}], ids=str)
def test_the_callers_torch_state_does_not_matter(finished, tmp_path, ambient, changes):  # noqa: F811
    inputs = [Image.new("RGB", (40, 40), "red")] * 2 if changes.get("family") == "vit" else TEXTS
    expected = fedms.load(finished(**changes), "client-0").predict(inputs, None)
    gc.collect()
    with ambient():
        client = fedms.load(finished(**changes), "client-0")
        assert client.predict(inputs) == expected
        if client.personal.method.predicts == "mixture":
            export_client(client, tmp_path / "inside")
    if (tmp_path / "inside").exists():
        for path in export_client(client, tmp_path / "outside").files:
            same = tmp_path / "inside" / path.relative_to(tmp_path / "outside")
            assert same.read_bytes() == path.read_bytes()
    assert client.predict(inputs) == expected
