"""A world of four clients with a tiny BERT, for tests of server and clients without an engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedms.config import Config, load
from fedms.federation.world import World, open_world

TEXTS = {"light": "turn the kitchen light {}", "music": "play music louder {}", "off": "off off please {}"}
ENDINGS = ("on", "please", "on please", "the lights", "the kitchen lights", "on the light", "please please", "lights on please")
Open = Callable[..., World]


@pytest.fixture(scope="session")
def settings(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """A config of four clients; overrides as on the command line."""
    corpus: Path = tmp_path_factory.mktemp("corpus") / "texts.csv"
    rows = [f"{text.format(ending)},{label}" for label, text in TEXTS.items() for ending in ENDINGS * 2]
    corpus.write_text("text,label\n" + "\n".join(rows) + "\n")
    base = {
        "model": {"name": str(checkpoint("bert")), "max_length": 12},
        "data": {"source": str(corpus)},
        "partition": {"clients": 4, "alpha": 1.0, "min_samples": 5},
        "federation": {"cohort": 2},
        "lora": {"rank": 2},
    }
    return lambda *overrides: load(base, overrides)


@pytest.fixture(scope="session")
def opened(settings) -> Open:
    """The world of a config; opened once, so do not change it."""
    worlds: dict[tuple[str, ...], World] = {}

    def world(*overrides: str) -> World:
        if overrides not in worlds:
            worlds[overrides] = open_world(settings(*overrides))
        return worlds[overrides]

    return world
