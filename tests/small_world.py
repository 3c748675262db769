"""A world of four clients with a tiny BERT, for tests of server and clients without an engine."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedms.config import Config, load_config
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import FINAL_TEST, TRAINING
from fedms.federation.exchanges.base import Asked, Exchange
from fedms.federation.exchanges.testing import FinalTestAsked
from fedms.federation.messages import Task, Update, decode_task, decode_update, encode
from fedms.federation.method import Stage
from fedms.federation.methods import METHODS, of
from fedms.federation.personal_model import UNSCALED
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import World, open_world
from fedms.model.arrays import Arrays
from fedms.runs.folder import read_arrays

TEXTS = {"light": "turn the kitchen light {}", "music": "play music louder {}", "off": "off off please {}"}
ENDINGS = (
    "on",
    "please",
    "on please",
    "the lights",
    "the kitchen lights",
    "on the light",
    "please please",
    "lights on please",
)
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
    return lambda *overrides: load_config(base, overrides)


@pytest.fixture(scope="session")
def opened(settings) -> Open:
    """The world of a config; opened once, so do not change it."""
    worlds: dict[tuple[str, ...], World] = {}

    def world(*overrides: str) -> World:
        if overrides not in worlds:
            worlds[overrides] = open_world(settings(*overrides))
        return worlds[overrides]

    return world


class Federation:
    """Server and clients of one method without an engine, everything through bytes.

    The head starts from the class names.

    Attributes:
        exchanges: every task with its answer.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.method = of(world.config)
        self.server = Server(
            recipe_for(world.config, self.method), world.backbone, list(world.clients), world.ranks
        )
        self.host = ClientHost(world, folder)
        self.folder = folder
        self.exchanges: list[tuple[Task, Update]] = []
        self.server.start_head(world.classes, world.class_embeddings)
        self.stage = self.method.stages[0]
        self.server.begin(self.stage)

    def ask(
        self,
        exchange: Exchange[Any, Any, Any],
        clients: Sequence[str],
        stage: Stage | None,
        number: int,
        asked: Asked | None = None,
    ) -> list[Update]:
        made = self.server.tasks(exchange, clients, stage, number, self.server.shared, asked)
        tasks = [decode_task(encode(task)) for task in made]
        updates = [decode_update(encode(self.host.handle(task))) for task in tasks]
        self.server.record_delivery(tasks, updates)
        self.exchanges += zip(tasks, updates, strict=True)
        return updates

    def round(self, number: int, clients: Sequence[str] | None = None) -> dict[str, Update]:
        """One round of the present stage, with these clients or all; their updates by name."""
        updates = self.ask(TRAINING, clients or self.server.clients, self.stage, number)
        self.server.aggregate(self.stage, number, updates)
        return {update.client: update for update in updates}

    def next_stage(self) -> None:
        self.stage = self.method.stages[self.method.stages.index(self.stage) + 1]
        self.server.begin(self.stage)

    def finish(self) -> dict[str, Arrays]:
        """What each client predicts with in the end."""
        self.server.settle()
        asked = FinalTestAsked(self.server.config.gate.prior, 1.0, list(UNSCALED))
        self.ask(FINAL_TEST, self.server.clients, None, 0, asked)
        return {
            name: read_arrays(self.folder / "clients" / name / "model.safetensors")[0]
            for name in self.server.clients
        }

    def sent_up(self) -> set[str]:
        """Names of all that a client has answered."""
        return {name for _, update in self.exchanges for name in update.arrays}

    def sent_down(self) -> set[str]:
        return {name for task, _ in self.exchanges for name in task.arrays}


@pytest.fixture
def federation(opened, tmp_path: Path) -> Callable[..., Federation]:
    """A federation of this method; training is quick, so that every round shows."""

    def make(method: str, *overrides: str) -> Federation:
        fixed = [f"{key}={value}" for key, value in METHODS[method].settings.items()]
        quick = (
            "head.kind=text-init",
            "training.batch_size=2",
            "training.learning_rate=0.01",
            "training.head_learning_rate=0.01",
        )
        return Federation(
            opened(f"method={method}", *quick, *fixed, *overrides), Path(tempfile.mkdtemp(dir=tmp_path))
        )

    return make
