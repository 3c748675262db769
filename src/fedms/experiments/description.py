"""Who holds what, before any training."""

from __future__ import annotations

import logging
from typing import Any

from fedms.config import Config
from fedms.data import sources
from fedms.data.partition import partition
from fedms.federation.methods import find

log = logging.getLogger(__name__)


def describe_partition(config: Config) -> dict[str, Any]:
    """Who holds what, without loading a model.

    Returns:
        classes, clients, counts [client][class], splits [client][train, validation, test].
    """
    find(config.method)
    dataset = sources.load(config.data, config.seed)
    parts = partition(dataset, config.partition, config.seed)
    for note in dataset.notes:
        log.warning(note)
    return {
        "classes": list(dataset.class_names),
        "clients": [client.name for client in parts.clients],
        "counts": parts.counts(dataset.labels, len(dataset.class_names)).tolist(),
        "splits": [[len(client.train), len(client.validation), len(client.test)] for client in parts.clients],
    }
