"""Federated LoRA with Flower's simulation and PEFT, as a good user writes it: baseline of versus_flower.py.

    python bench/flower/flower_baseline.py WORK.json

A whole program that does not need fedms. versus_flower.py writes WORK.json: the folder of the data
(`train.csv`, `test.csv`), the folder of the encoder, the rows of `train.csv` that each client holds, the
cohort of each round, and the training settings. The last line of output is a JSON object.

The program does what a good user does. Encoder and tokens stay in the actors. Batches are padded to their own
longest text. Only the LoRA matrices and the head travel. The server tests the one model once, at the end,
with all cores.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding

LORA_DROPOUT = 0.1
"""As in PEFT's guides. `model.train()` also turns the encoder's own dropout on."""
Work = dict[str, Any]

client_app = ClientApp()
server_app = ServerApp()
outcome: dict[str, Any] = {}
"""Accuracy and samples. The server runs in this process and fills it."""


# --- task ------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """The encoder with LoRA on query and value, mean pooling, and a linear head that starts from zero."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        lora = LoraConfig(
            r=work["rank"],
            lora_alpha=work["alpha"],
            lora_dropout=LORA_DROPOUT,
            target_modules=["query", "value"],
        )
        self.encoder = get_peft_model(AutoModel.from_pretrained(work["model"]), lora)
        self.head = nn.Linear(self.encoder.config.hidden_size, len(work["classes"]))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits, [n, C]."""
        hidden = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(2)
        logits: Tensor = self.head((hidden * mask).sum(1) / mask.sum(1))
        return logits

    def trained(self) -> dict[str, Tensor]:
        """The trained arrays, which are the arrays that travel."""
        return {
            name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad
        }


@lru_cache(maxsize=1)
def read_work(path: str) -> Work:
    work: Work = json.loads(Path(path).read_text())
    return work


@lru_cache(maxsize=1)
def model_of(path: str) -> Classifier:
    return Classifier(read_work(path))


@lru_cache(maxsize=1)
def tokenizer_of(path: str) -> Any:
    return AutoTokenizer.from_pretrained(read_work(path)["model"])


@lru_cache(maxsize=2)
def samples_of(path: str, split: str) -> Any:
    """All samples of a split, tokenised: a list of dicts."""
    work = read_work(path)
    with (Path(work["data"]) / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {name: number for number, name in enumerate(work["classes"])}
    encoded = tokenizer_of(path)(
        [row["text"] for row in rows], truncation=True, max_length=work["max_length"]
    )
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": numbers[row["category"]]}
        for row, ids, mask in zip(rows, encoded["input_ids"], encoded["attention_mask"], strict=True)
    ]


def batches(path: str, samples: Any, generator: torch.Generator | None = None) -> Iterable[dict[str, Tensor]]:
    """Batches padded to their longest text; in random order if a generator is given."""
    collate = DataCollatorWithPadding(tokenizer_of(path))
    size = read_work(path)["batch_size"]
    loader: Iterable[dict[str, Tensor]] = DataLoader(
        samples, batch_size=size, shuffle=generator is not None, generator=generator, collate_fn=collate
    )
    return loader


# --- client ----------------------------------------------------------------------------------------------


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Train one client for one epoch."""
    torch.set_num_threads(1)  # each core has its own actor
    config = message.content["config"]
    path, client, number = str(config["work"]), int(config["client"]), int(config["server-round"])
    work, model = read_work(path), model_of(path)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    model.train()
    torch.manual_seed(work["seed"] * 1_000_003 + number * 1_009 + client)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    mine: Subset[Any] = Subset(samples_of(path, "train"), work["clients"][client])
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=work["learning_rate"]
    )
    total = 0.0
    for batch in batches(path, mine, generator):
        labels = batch.pop("labels")
        loss = F.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(labels)
    metrics = MetricRecord({"train_loss": total / len(mine), "num-examples": len(mine)})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(model.trained()), "metrics": metrics}), reply_to=message
    )


# --- server ----------------------------------------------------------------------------------------------


class GivenCohorts(FedAvg):  # type: ignore[misc]
    """FedAvg whose sampled nodes act as the clients of the given cohorts: both sides train the same data."""

    def __init__(self, work: Work) -> None:
        cohort = len(work["cohorts"][0])
        share = cohort / len(work["clients"])
        super().__init__(
            fraction_train=share,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=len(work["clients"]),
        )
        self.cohorts = work["cohorts"]
        self.samples = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message, client in zip(messages, self.cohorts[server_round - 1], strict=True):
            message.content = RecordDict(
                {"arrays": arrays, "config": ConfigRecord({**config, "client": client})}
            )
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.samples += sum(
            int(reply.content["metrics"]["num-examples"]) for reply in replies if reply.has_content()
        )
        return super().aggregate_train(server_round, replies)


@server_app.main()  # type: ignore[untyped-decorator]
def serve(grid: Grid, context: Context) -> None:
    """Run all rounds, then test the one model on the whole test split."""
    path = sys.argv[1]
    work = read_work(path)
    torch.manual_seed(work["seed"])
    model = model_of(path)
    strategy = GivenCohorts(work)
    found = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.trained()),
        train_config=ConfigRecord({"work": path}),
        num_rounds=len(work["cohorts"]),
    )
    model.load_state_dict(found.arrays.to_torch_state_dict(), strict=False)
    outcome.update(accuracy=evaluate(path, model), samples=strategy.samples)


@torch.inference_mode()
def evaluate(path: str, model: Classifier) -> float:
    """Accuracy on the whole test split."""
    model.eval()
    right = total = 0
    for batch in batches(path, samples_of(path, "test")):
        labels = batch.pop("labels")
        right += int((model(batch).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def main() -> None:
    work = read_work(sys.argv[1])
    actors = work["actors"]
    backend: Any = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": actors, "include_dashboard": False},
    }
    run_simulation(
        server_app,
        client_app,
        num_supernodes=len(work["clients"]),
        backend_name="ray",
        backend_config=backend,
    )
    versions = {name: version(name) for name in ("flwr", "ray", "peft", "transformers", "torch")}
    print(json.dumps({**outcome, "versions": versions}), flush=True)


if __name__ == "__main__":
    # Imported by name: an actor imports the module once. Objects of `__main__` travel with every message.
    import flower_baseline

    flower_baseline.main()
