"""The files that sites would have: a client's rows with their splits, and a file that all may hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.core.files import make_folder, write_bytes, write_json
from fedms.data import sources
from fedms.data.federated import SPLITS, federated
from fedms.data.partition import partition
from fedms.data.public import SPLIT
from fedms.data.sources import Dataset

PUBLIC, CLASSES = "public.csv", "classes.json"
"""Names of files beside the clients' folders."""
OWN = "samples.csv"
"""Name of a client's file in its folder."""


def write_site_files(config: Config, folder: Path) -> None:
    """Divide a data set of texts as the config says, into a folder a client.

    Raises:
        FedmsError: the data cannot be read or divided, or are pictures.
    """
    dataset = sources.load(config.data, config.seed)
    if dataset.kind != "text":
        raise FedmsError(f"{config.data.source}: pictures cannot be written as sites' files yet")
    parts = partition(dataset, config.partition, config.seed)
    judged = config.evaluation
    whole = federated(dataset, parts, judged.splits, judged.everyone, config.seed)
    for client in parts.clients:
        rows = [(int(row), split) for split in SPLITS for row in getattr(client, split)]
        make_folder(folder / client.name)
        write_bytes(folder / client.name / OWN, _table(dataset, sorted(rows)))
    assert whole.evaluation is not None
    everyone = [(int(row), split) for split, rows in whole.evaluation.splits.items() for row in rows]
    write_bytes(folder / PUBLIC, _table(dataset, everyone))
    write_json(folder / CLASSES, list(dataset.class_names))


def _table(dataset: Dataset, rows: Iterable[tuple[int, str]]) -> bytes:
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(["text", "label", SPLIT])
    for row, split in rows:
        lines.writerow([dataset.inputs[row], dataset.class_names[dataset.labels[row]], split])
    return text.getvalue().encode()
