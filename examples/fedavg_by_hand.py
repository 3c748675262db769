"""FedAvg by hand: data, backbone, server, clients and the loop over rounds, without `fedms.run`.

    python examples/fedavg_by_hand.py

Read this program to learn the parts. It needs no network and takes a few seconds. Four clients hold 400
requests of the embedded corpus and share LoRA matrices and a head. Expect validation accuracy to rise from
.40 to .49.
"""

import tempfile
from pathlib import Path
from typing import Any

import fedms
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import EVALUATION, TRAINING
from fedms.federation.exchanges.base import Exchange
from fedms.federation.messages import Update, decode_task, decode_update, encode
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import open_world

CONFIG = {
    "method": "fedavg",
    "model": {"name": "minilm"},  # the embedded encoder, frozen
    "data": {"source": "assistant", "limit": 400},
    "partition": {"clients": 4, "alpha": 1.0, "validation": 0.3},
    "federation": {"cohort": 3},
    "training": {"batch_size": 8, "head_learning_rate": 5e-3},
    "head": {"kind": "text-init"},  # the head starts from embeddings of the class names
}


def main(rounds: int = 3) -> list[float]:
    """Train for this many rounds; return the validation accuracy over all clients after each round."""
    config = fedms.load_config(CONFIG)

    # the world: the data, which client holds which rows, and the frozen transformer
    world = open_world(config)
    for name, client in world.clients.items():
        print(f"{name} holds {len(client.train)} training samples")

    # the server holds what is shared: the LoRA matrices A and B, and the head
    recipe = recipe_for(config)
    stage = recipe.method.stages[0]
    server = Server(recipe, world.backbone, list(world.clients), world.ranks)
    server.start_head(world.classes, world.class_embeddings)
    server.begin(stage)

    accuracies = []
    with tempfile.TemporaryDirectory() as folder:
        clients = ClientHost(world, Path(folder))  # one host plays all clients

        def ask(exchange: Exchange[Any, Any, Any], names: list[str], number: int) -> list[Update]:
            """The answers of these clients. A task travels as bytes, and so does its update."""
            tasks = server.tasks(exchange, names, stage, number, arrays=server.shared)
            sent = [encode(task) for task in tasks]
            return [decode_update(encode(clients.handle(decode_task(data)))) for data in sent]

        for number in range(1, rounds + 1):
            updates = ask(TRAINING, server.sampling.cohort(stage, number), number)
            server.aggregate(stage, number, updates)
            scored = [EVALUATION.answered.of(update) for update in ask(EVALUATION, server.clients, number)]
            accuracies.append(EVALUATION.combine(scored, recipe))
            print(f"round {number}: trained by {len(updates)} clients, accuracy {accuracies[-1]:.3f}")
        clients.close()
    return accuracies


if __name__ == "__main__":
    main()
