"""What every process of an experiment opens from its config: data, partition, backbone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedms.config import Config
from fedms.core.errors import ConfigError
from fedms.data import sources
from fedms.data.federated import FederatedDataset, OpenRows, Samples, federated, repeated
from fedms.data.partition import ClientSplit, Partition, partition
from fedms.data.public import check_public
from fedms.data.sources import Dataset
from fedms.federation.activation import check_depth
from fedms.federation.identity import DataIdentity, Identity, ModelIdentity
from fedms.federation.tiers import capacities, ranks
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import load_backbone
from fedms.model.text_tower import check_tower
from fedms.model.vocabulary import give_words
from fedms.training.device import prepare, resolved
from fedms.training.inputs import Inputs, class_name_embeddings, inputs_for
from fedms.training.passages import passage_inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """The same on every process that opens the same config."""

    config: Config
    dataset: Dataset
    partition: Partition
    data: FederatedDataset
    """All clients' samples. A client is opened from `data.of_client`: use `open_client`."""
    backbone: Backbone
    inputs: Inputs
    """Model inputs of the rows that were opened: a row of a client that nobody opened raises KeyError"""
    opened: OpenRows
    """The rows that `inputs` reads"""
    _clients: dict[str, FederatedDataset] = field(default_factory=dict, repr=False)

    def check(self) -> Identity:
        """Read every sample once, and log what the user should know about the data.

        Returns:
            What stands behind the names of data and model.

        Raises:
            FedmsError: a sample cannot be read.
        """
        digests = self.dataset.check()
        for line in (*self.dataset.notes, repeated(digests, self.partition)):
            if line:
                log.warning(line)
        return Identity(self._data_identity(digests), ModelIdentity.of(self.backbone))

    @cached_property
    def glance(self) -> DataIdentity:
        """The identity of the data as far as it costs next to nothing: see `Dataset.glance`.

        The run's own process and its workers compare it. It is no part of the run folder.
        """
        return self._data_identity(self.dataset.glance())

    def _data_identity(self, digests: Sequence[bytes]) -> DataIdentity:
        return DataIdentity.of(self.dataset, digests, self.config.partition.column)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.class_names

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def sample_count(self) -> int:
        return len(self.data.rows.numbers)

    def label_counts(self) -> list[list[int]]:
        """Training and validation samples of each class at every client, [clients][classes]."""
        counts: list[list[int]] = self.partition.counts(self.dataset.labels, self.classes).tolist()
        return counts

    @property
    def clients(self) -> Mapping[str, ClientSplit]:
        return self.data.clients

    @cached_property
    def capacities(self) -> dict[str, int]:
        return capacities(self.config.activation, list(self.clients), self.backbone.depth, self.config.seed)

    @cached_property
    def ranks(self) -> dict[str, int]:
        return ranks(self.config.lora, list(self.clients), self.config.seed)

    @cached_property
    def class_embeddings(self) -> Tensor:
        """Frozen features of the class names, [C, d]."""
        config = self.config
        return class_name_embeddings(self.class_names, self.backbone, config.model, config.head.prompt)

    def open_client(self, name: str) -> FederatedDataset:
        """What one client holds: its own rows, and the evaluation rows that a simulation hands to all.

        Raises:
            FedmsError: there is no such client.
        """
        if name not in self._clients:
            view = self.data.of_client(name, self.data.evaluation)
            self.opened.add(view.rows)
            self._clients[name] = view
        return self._clients[name]

    def samples(self, client: str, split: str) -> Samples:
        """One client's train, validation or test samples."""
        return self.open_client(client).samples(client, split)

    @cached_property
    def everyone(self) -> dict[str, Samples]:
        """All clients' validation and test samples together, at most `evaluation.everyone` of each; or the
        samples of `evaluation.public` for test. A site holds no more than the latter."""
        held = self.data.evaluation.splits if self.data.evaluation else ()
        return {split: self.data.everyone(split) for split in self.config.evaluation.splits if split in held}

    def close(self) -> None:
        """Nothing is to be ended here; see `ServerSide`."""


def divided(config: Config) -> tuple[Dataset, Partition]:
    """The data set, and who holds what. Errors are the user's to mend (FedmsError)."""
    by_client = config.partition.rule == "files"
    dataset = sources.load(config.data, config.seed, by_client, alone=config.join, task=config.task)
    parts = partition(dataset, config.partition, config.seed)
    try:
        config.federation.check(len(parts.clients))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.evaluation.public is not None:
        check_public(config.evaluation.public, config.evaluation.public_sha256)
        dataset = sources.with_public(dataset, config.evaluation.public, config.data, config.task)
    return dataset, parts


def open_world(config: Config) -> World:
    """Load data and model, divide the data. Errors are the user's to mend (FedmsError)."""
    dataset, parts = divided(config)
    backbone = open_backbone(config)
    judged = config.evaluation
    # where a client joins, the others' samples are elsewhere
    splits = judged.splits if config.join is None else judged.public_splits
    data = federated(dataset, parts, splits, judged.everyone, config.seed)
    opened = OpenRows(data.evaluation.rows) if data.evaluation else OpenRows()
    inputs: Inputs
    if config.task == "text":
        inputs = passage_inputs(opened, backbone, config.model)
    else:
        inputs = inputs_for(replace(dataset, inputs=opened), backbone, config.model, config.data.around)
    return World(config, dataset, parts, data, backbone, inputs, opened)


def open_backbone(config: Config) -> Backbone:
    """The frozen model of a config on its device. Errors are the user's to mend (FedmsError)."""
    device = resolved(config.device)
    prepare(device, config.deterministic)
    dtype = getattr(torch, config.precision)
    backbone = load_backbone(config.model, config.lora, dtype)
    backbone.checkpointing = config.training.gradient_checkpointing
    if config.task == "text":
        give_words(backbone)
    if backbone.kind == "image" and config.head.kind in ("text", "text-init"):
        check_tower(backbone, f"head.kind: {config.head.kind}")
    if backbone.kind == "image" and config.statistics.anchor:
        raise ConfigError(f"statistics.anchor: needs a text model; with {config.model.name} allowed: 0")
    check_depth(config.activation, backbone.depth, config.model.name)
    backbone.to_device(device, dtype)
    return backbone
