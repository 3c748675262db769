"""What a client's side knows while it does one task.

A value, built once a task; exchanges read nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedms.config import Config
from fedms.data.federated import FederatedDataset, Samples
from fedms.federation.client_folder import ClientFolder, Version
from fedms.federation.messages import Situation
from fedms.federation.recipe import Recipe
from fedms.federation.tiers import trainable
from fedms.model.arrays import Arrays, strip
from fedms.model.backbone import Backbone
from fedms.model.expert import Expert
from fedms.training.runner import Runner

RECEIVED, STATE = "received", "state"
"""Kinds of files that a client keeps: what it was sent once, and what it trained and never sends."""


@dataclass(frozen=True)
class ClientView:
    """One client at one task.

    It holds this client's samples and no other's, and everyone's evaluation samples.
    """

    client: str
    recipe: Recipe
    data: FederatedDataset
    """The client's own samples."""
    everyone: Mapping[str, Samples]
    """All clients' evaluation samples, by split."""
    runner: Runner
    capacity: int
    """How many blocks it can train."""
    rank: int
    """Of its pairs."""
    class_embeddings: Tensor | None
    """Frozen features of the class names [C, d], where a head or the accuracy before training needs them."""
    folder: ClientFolder
    version: Version
    """The place of the task's stage in the method, and its round."""
    situation: Situation
    arrays: Arrays
    """What the task brought."""
    received: Arrays
    """What the client was sent once, in this task or before."""
    kept: Arrays
    """What it trained and kept before this round."""
    kept_at: Mapping[str, Any]
    """The stage and round that it kept that in."""

    @property
    def config(self) -> Config:
        return self.recipe.config

    @property
    def backbone(self) -> Backbone:
        return self.runner.backbone

    @property
    def boundary(self) -> int:
        """The lowest block that is not the frozen backbone's alone."""
        return self.situation.boundary

    @property
    def classes(self) -> int:
        return len(self.data.class_names)

    @property
    def blocks(self) -> list[int]:
        """The blocks that this client trains, ascending."""
        return trainable(list(self.situation.active), self.capacity, self.config.activation.order)

    @property
    def global_expert(self) -> Expert | None:
        """The frozen global expert, or the frozen backbone with the head from which all start; None before
        it came.
        """
        arrays = strip(self.received, "global/")
        return (
            Expert(arrays, self.recipe.scale)
            if "head.weight" in arrays or (arrays and self.recipe.of_text)
            else None
        )

    def samples(self, split: str) -> Samples:
        """The client's own train, validation or test samples."""
        return self.data.samples(self.client, split)

    def keep(self, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Save what the client trained in this round and never sends."""
        self.folder.save(STATE, self.version, arrays, meta)
