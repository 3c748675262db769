"""Two of ten clients lie, within what is admitted: on the embedded corpus, with the embedded encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedms.config import load_config
from fedms.federation.admission import Admission
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import EXCHANGES
from fedms.federation.messages import Task, Update
from fedms.federation.methods import of
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import open_world
from fedms.model.expert import Expert

pytestmark = pytest.mark.integration

LIARS = ("client-1", "client-6")
ROUNDS = 3
BASE = {
    "method": "fedavg-sal",
    "data": {"limit": 600},
    "partition": {"clients": 10, "alpha": 0.5},
    "training": {"learning_rate": 3e-3, "head_learning_rate": 5e-3, "batch_size": 8},
    "activation": {"rule": "fixed"},
    "head": {"kind": "text-init"},
}
Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def turned_around(start: Tensor, array: Tensor, generator: torch.Generator) -> Tensor:
    return start - 6 * (array - start)


def exaggerated(start: Tensor, array: Tensor, generator: torch.Generator) -> Tensor:
    return start + 6 * (array - start)


def noisy(start: Tensor, array: Tensor, generator: torch.Generator) -> Tensor:
    step = array - start
    return start + 5 * step.abs().max() * torch.randn(step.shape, generator=generator).sign()


ATTACKS: dict[str, Change] = {"turned around": turned_around, "exaggerated": exaggerated, "noisy": noisy}


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """The global expert's accuracy on everyone's test data after three rounds; what is frozen is computed
    once for all.
    """
    world = open_world(load_config(BASE))
    method, host = of(world.config), ClientHost(world, tmp_path_factory.mktemp("lies"))
    found: dict[tuple[str, str | None], float] = {}

    def train(robust: str, attack: str | None) -> float:
        config = load_config(BASE, [f"federation.robust={robust}"])
        server = Server(recipe_for(config, method), world.backbone, list(world.clients), world.ranks)
        admission = Admission(server, world.classes, world.capacities)
        server.start_head(world.classes, world.class_embeddings)
        (stage,) = method.stages
        server.begin(stage)
        generator = torch.Generator().manual_seed(0)

        def answer(task: Task) -> Update:
            update = host.handle(task)
            if attack and task.client in LIARS:
                lies = {
                    name: ATTACKS[attack](task.arrays[name], array, generator)
                    for name, array in update.arrays.items()
                }
                update = replace(update, arrays=lies)
            assert admission.admitted(task, update) is update, "nothing but the average stands against it"
            return update

        for number in range(1, ROUNDS + 1):
            tasks = server.tasks(EXCHANGES["train"], server.clients, stage, number, arrays=server.shared)
            server.aggregate(stage, number, [answer(task) for task in tasks])
        samples = world.everyone["test"]
        expert = Expert(server.frozen | server.shared, config.lora.alpha / config.lora.rank)
        logits = host.runner.outputs(expert, samples, server.boundary(stage)).logits
        assert logits is not None
        return float((logits.argmax(1) == samples.labels).float().mean())

    def once(robust: str, attack: str | None) -> float:
        if (robust, attack) not in found:
            found[robust, attack] = train(robust, attack)
        return found[robust, attack]

    return once


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_robust_average_withstands_what_the_mean_does_not(accuracy, attack):
    assert accuracy("median", attack) > accuracy("none", attack)


def test_a_robust_average_costs_little_where_nobody_lies(accuracy):
    assert accuracy("median", None) > accuracy("none", None) - 0.04
