"""What every process of an experiment opens from its config: data, partition, backbone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedms.config import Config
from fedms.core import seeds
from fedms.core.errors import ConfigError, FedmsError
from fedms.data import sources
from fedms.data.federated import FederatedDataset, Samples
from fedms.data.partition import ClientSplit, Partition, partition
from fedms.data.sources import Dataset
from fedms.federation.activation import check_depth
from fedms.federation.tiers import capacities, ranks
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone
from fedms.training.device import prepare
from fedms.training.inputs import Inputs, class_name_embeddings, inputs_for


@dataclass(frozen=True)
class World:
    """The same on every process that opens the same config."""

    config: Config
    dataset: Dataset
    partition: Partition
    backbone: Backbone
    inputs: Inputs

    @property
    def classes(self) -> int:
        return len(self.dataset.class_names)

    @cached_property
    def clients(self) -> dict[str, ClientSplit]:
        return {client.name: client for client in self.partition.clients}

    @cached_property
    def capacities(self) -> dict[str, int]:
        return capacities(self.config.activation, list(self.clients), self.backbone.depth, self.config.seed)

    @cached_property
    def ranks(self) -> dict[str, int]:
        return ranks(self.config.lora, list(self.clients), self.config.seed)

    @cached_property
    def class_embeddings(self) -> Tensor:
        """Frozen features of the class names, [C, d]."""
        return class_name_embeddings(self.dataset.class_names, self.backbone, self.config.model)

    @cached_property
    def data(self) -> FederatedDataset:
        rows = {
            name: {"train": split.train, "validation": split.validation, "test": split.test}
            for name, split in self.clients.items()
        }
        return FederatedDataset(self.dataset.class_names, rows, self.dataset.labels)

    def samples(self, client: str, split: str) -> Samples:
        """One client's train, validation or test samples."""
        return self._samples(f"{client}/{split}", getattr(self.clients[client], split))

    @cached_property
    def everyone(self) -> dict[str, Samples]:
        """All clients' validation and test samples together, at most `evaluation.everyone` of each."""
        limit = self.config.evaluation.everyone
        found = {}
        for split in self.config.evaluation.splits:
            rows = np.sort(np.concatenate([getattr(client, split) for client in self.partition.clients]))
            if limit is not None and limit < len(rows):
                rows = np.sort(
                    seeds.numpy_generator(self.config.seed, "everyone", split).choice(
                        rows, limit, replace=False
                    )
                )
            found[split] = self._samples(f"everyone/{split}", rows)
        return found

    def _samples(self, owner: str, rows: np.ndarray) -> Samples:
        return Samples(owner, rows, torch.from_numpy(self.dataset.labels[rows]))


def open_world(config: Config) -> World:
    """Load data and model, divide the data. Errors are the user's to mend (FedmsError)."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise FedmsError("device: cuda is not available here; allowed: cpu")
    dataset = sources.load(config.data, config.seed)
    parts = partition(dataset, config.partition, config.seed)
    prepare(config.device, config.deterministic)
    backbone = load_backbone(config.model, config.lora)
    if backbone.kind == "image" and config.head.kind in ("text", "text-init"):
        allowed = "statistics, means, linear"
        raise ConfigError(
            f"head.kind: {config.head.kind} needs a text model; with {config.model.name} allowed: {allowed}"
        )
    check_depth(config.activation, backbone.depth, config.model.name)
    backbone.to_device(config.device, getattr(torch, config.precision))
    return World(config, dataset, parts, backbone, inputs_for(dataset, backbone, config.model))
