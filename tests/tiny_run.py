"""Finished runs of seconds: made-up texts or pictures, a tiny random transformer, three clients, one round a
stage.
"""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedms.config import Config, load_config
from fedms.experiments import experiment

TELLING = {
    "lights_on": ("turn", "on"),
    "lights_off": ("turn", "off"),
    "music": ("play", "music"),
    "volume": ("louder", "please"),
}
FILLING = ("the", "light", "lights", "kitchen")
Finished = Callable[..., Path]
_made: dict[str, Path] = {}


def write_texts(path: Path) -> None:
    """Four classes of 30 texts."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for label, words in TELLING.items():
            for _ in range(30):
                text = [*words, *draw.choices(FILLING, k=draw.randint(1, 6))]
                draw.shuffle(text)
                rows.writerow([" ".join(text), label])


def write_pictures(folder: Path) -> None:
    """Two classes of 24 pictures, dark and bright."""
    generator = np.random.default_rng(0)
    for label, low in (("dark", 0), ("bright", 128)):
        (folder / label).mkdir(parents=True)
        for number in range(24):
            pixels = generator.integers(low, low + 128, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def run_config(model: Path, source: Path, **changes: Any) -> Config:
    """Changes are `section__key=value` or `key=value`."""
    values: dict[str, Any] = {
        "model": {"name": str(model), "max_length": 16},
        "data": {"source": str(source)},
        "partition": {"clients": 3, "alpha": 0.5},
        "federation": {"cohort": 2, "rounds_global": 1, "rounds_local": 1},
        "training": {"learning_rate": 0.02},
        "activation": {"blocks": 2},
        "lora": {"rank": 4},
        "gate": {"epochs": 1},
        "engine": {"workers": 1},
    }
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        if section:
            values.setdefault(section, {})[name] = value
        else:
            values[name] = value
    return load_config(values)


@pytest.fixture(scope="session")
def finished(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run folder for these changes; made once, so do not change it."""

    def make(family: str = "bert", **changes: Any) -> Path:
        key = repr((family, sorted(changes.items())))
        if key not in _made:
            place = tmp_path_factory.mktemp("run")
            source, model = place / ("pictures" if family == "vit" else "texts.csv"), checkpoint(family)
            if family == "vit":
                from transformers import ViTImageProcessor

                write_pictures(source)
                model = Path(shutil.copytree(model, place / "model"))
                ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(model)
            else:
                write_texts(source)
            experiment.run(run_config(model, source, **changes), place / "run")
            _made[key] = place / "run"
        return _made[key]

    return make
