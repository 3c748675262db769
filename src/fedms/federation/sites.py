"""The two sides of a federation whose data lie at sites.

The server's side opens no data set; a site's side holds its own rows and nobody else's. `World` is both in
one: what a simulation opens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import Tensor

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt
from fedms.data.federated import OpenRows, federated
from fedms.data.partition import partition
from fedms.data.public import check_public
from fedms.data.sources import Dataset, with_public
from fedms.federation.identity import DataIdentity, Identity, ModelIdentity
from fedms.federation.tiers import capacities, ranks
from fedms.federation.world import World
from fedms.model.backbone import Backbone
from fedms.training.inputs import class_name_embeddings, inputs_for


class ServerSide(Protocol):
    """What a server needs to know of a federation."""

    @property
    def config(self) -> Config: ...
    @property
    def backbone(self) -> Backbone: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def classes(self) -> int: ...
    @property
    def clients(self) -> Collection[str]:
        """All clients' names."""

    @property
    def sample_count(self) -> int:
        """Samples of all clients."""

    @property
    def capacities(self) -> Mapping[str, int]:
        """The number of blocks that each client can train."""

    @property
    def ranks(self) -> Mapping[str, int]:
        """The rank of each client's pairs."""

    @property
    def class_embeddings(self) -> Tensor:
        """Frozen features of the class names, [C, d]."""

    def label_counts(self) -> list[list[int]]:
        """Training and validation samples of each class at every client; empty where clients do not say."""

    def check(self) -> Identity:
        """What stands behind the names of data and model. Raises FedmsError if the data cannot be used."""

    def close(self) -> None:
        """Let go of what leads to the clients."""


@dataclass(frozen=True)
class Declared:
    """What a site says of itself."""

    samples: int
    """Of all splits together"""
    capacity: int | None = None
    """The most blocks that it can train; None for any number"""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Its training and validation samples of each class that it holds; empty where it does not say, or not
    yet"""


@dataclass(frozen=True)
class ServerWorld:
    """The server's side, without data."""

    config: Config
    backbone: Backbone
    class_names: tuple[str, ...]
    clients: tuple[str, ...]
    declared: dict[str, Declared]
    """By client, as far as it is known now; a client that was not there yet is missing"""
    leave: Callable[[], None] = field(default=lambda: None, repr=False)
    """Called by `close`"""

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def sample_count(self) -> int:
        return sum(each.samples for each in self.declared.values())

    def declare(self, client: str, declared: Declared) -> None:
        """Take in what a site says of itself now."""
        self.declared[client] = declared
        if declared.capacity is not None:
            self.capacities[client] = min(self.dealt[client], declared.capacity)

    @cached_property
    def dealt(self) -> Mapping[str, int]:
        """The number of blocks that each client is to train, by the tiers of the config."""
        return capacities(self.config.activation, list(self.clients), self.backbone.depth, self.config.seed)

    @cached_property
    def capacities(self) -> dict[str, int]:
        own = {name: each.capacity for name, each in self.declared.items() if each.capacity is not None}
        return {name: min(blocks, own.get(name, blocks)) for name, blocks in self.dealt.items()}

    @cached_property
    def ranks(self) -> dict[str, int]:
        return ranks(self.config.lora, list(self.clients), self.config.seed)

    @cached_property
    def class_embeddings(self) -> Tensor:
        config = self.config
        return class_name_embeddings(self.class_names, self.backbone, config.model, config.head.prompt)

    def label_counts(self) -> list[list[int]]:
        """As the sites declare them; empty unless all do."""
        rows = [self.declared[name].counts for name in self.clients if name in self.declared]
        if len(rows) < len(self.clients) or not all(rows):
            return []
        return [[row.get(name, 0) for name in self.class_names] for row in rows]

    def check(self) -> Identity:
        """The identity of the model. That of the data is with the sites, which compare it themselves."""
        data = DataIdentity(0, self.class_names, "", "", "", "")
        return Identity(data, ModelIdentity.of(self.backbone))

    def close(self) -> None:
        """Let go of the way to the sites."""
        self.leave()


@dataclass(frozen=True)
class SiteWorld(World):
    """A site's side: a world in which no other client exists."""

    capacity: int = 0
    """How many blocks it can train."""
    rank: int = 0
    """Of its pairs."""

    @cached_property
    def capacities(self) -> dict[str, int]:
        return dict.fromkeys(self.clients, self.capacity)

    @cached_property
    def ranks(self) -> dict[str, int]:
        return dict.fromkeys(self.clients, self.rank)


@dataclass(frozen=True)
class Place:
    """What one site is, among the others."""

    name: str
    class_names: tuple[str, ...]
    """Of the whole federation"""
    capacity: int
    rank: int


def open_site(config: Config, place: Place, own: Dataset, backbone: Backbone) -> SiteWorld:
    """The world of a site.

    Args:
        config: the experiment's, with this site's section `data` and its copy of `evaluation.public`.
        own: the site's own samples, with the class names that occur in them.

    Raises:
        FedmsError: a class is not of the federation, the site holds too few samples, or its public file is
            another one.
    """
    dataset = relabelled(own, place.class_names)
    alone = config.partition.model_copy(update={"clients": 1, "rule": "files", "column": None})
    parts = partition(dataset, alone, config.seed)
    judged = config.evaluation
    if judged.public is not None:
        check_public(judged.public, judged.public_sha256)
        dataset = with_public(dataset, judged.public, config.data)
    data = federated(dataset, parts, judged.public_splits)
    opened = OpenRows(data.evaluation.rows) if data.evaluation else OpenRows()
    inputs = inputs_for(replace(dataset, inputs=opened), backbone, config.model, config.data.around)
    capacity = min(place.capacity, backbone.depth)
    return SiteWorld(
        config, dataset, parts, data, backbone, inputs, opened, capacity=capacity, rank=place.rank
    )


def relabelled(own: Dataset, class_names: tuple[str, ...]) -> Dataset:
    """The data set with the labels of these class names.

    Raises:
        FedmsError: it has a class that is not among them.
    """
    if unknown := [name for name in own.class_names if name not in class_names]:
        raise FedmsError(f"class {excerpt(repr(unknown[0]))} of this site is not among the federation's")
    place = np.array([class_names.index(name) for name in own.class_names], dtype=np.int64)
    return replace(own, labels=place[own.labels], class_names=class_names)
