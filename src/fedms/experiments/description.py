"""Who holds what, before any training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fedms.config import Config
from fedms.core.errors import ConfigError
from fedms.data.federated import federated
from fedms.data.written import check_can_write, write_clients
from fedms.federation.methods import find
from fedms.federation.world import divided

log = logging.getLogger(__name__)


def describe_partition(config: Config) -> dict[str, Any]:
    """Who holds what, without loading a model.

    Returns:
        classes, clients, counts [client][class], splits [client][train, validation, test].
    """
    find(config.method)
    dataset, parts = divided(config)
    for note in dataset.notes:
        log.warning(note)
    return {
        "classes": list(dataset.class_names),
        "clients": [client.name for client in parts.clients],
        "counts": parts.counts(dataset.labels, len(dataset.class_names)).tolist(),
        "splits": [[len(client.train), len(client.validation), len(client.test)] for client in parts.clients],
    }


def write_partition(config: Config, folder: Path) -> None:
    """Write each client's samples, everyone's test samples and the class names: `fedms.data.written`.

    Raises:
        FedmsError: the folder is not empty or cannot be written, or the data cannot be read.
    """
    if config.task == "text":
        raise ConfigError("task: text: its samples cannot be written as files yet; allowed: classification")
    check_can_write(folder)
    dataset, parts = divided(config)
    write_clients(federated(dataset, parts, ("test",), config.evaluation.everyone, config.seed), folder)
