"""Shared by all tests: one thread, and tiny transformers with random weights of every family that fedms
knows.
"""

from __future__ import annotations

import fedms  # noqa: F401 # isort: skip # before torch: only then are the same bits promised

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.engines import process
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone
from quick_workers import spawn
from tiny_models import tiny_model, word_tokenizer

torch.set_num_threads(1)
os.fsync = lambda fd: None  # no test ends the power; a tiny run would wait for the disk half of its time
if sys.platform == "linux":
    process._spawn = spawn
if hasattr(signal, "SIGHUP"):  # `nohup` has the children of the tests ignore it, and some tests send it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

Checkpoint = Callable[[str], Path]


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
