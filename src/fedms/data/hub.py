"""Data sets of the Hugging Face hub, and folders that `datasets` saved. None of their code is ever run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedms.core.errors import FedmsError
from fedms.data.arrow_tables import from_datasets
from fedms.data.splits import SPLITS, Source, joined
from fedms.data.table import brief

HUB_FORMATS = ("arrow", "cache", "csv", "imagefolder", "json", "parquet", "text")
"""Builders of `datasets` that only read files."""


def read_hub(source: str) -> Source:
    """`name`, or `name:subset` where the data set has several.

    Raises:
        FedmsError: it cannot be reached or read, or it has a format that may run code.
    """
    import datasets

    name, _, subset = source.partition(":")
    # without a network it would tell of each of its retries
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def read() -> Any:
        kind = type(datasets.load_dataset_builder(name, subset or None)).__module__.rpartition(".")[2]
        if kind not in HUB_FORMATS:  # some hold pickles
            raise FedmsError(f"{source}: a data set of the format {kind}; known: {', '.join(HUB_FORMATS)}")
        return datasets.load_dataset(name, subset or None)

    return _tables(source, read)


def read_saved(folder: Path) -> Source:
    """A folder that `save_to_disk` made.

    Raises:
        FedmsError: it cannot be read.
    """
    import datasets

    return _tables(str(folder), lambda: datasets.load_from_disk(str(folder)))


def _tables(source: str, read: Callable[[], Any]) -> Source:
    try:
        found = read()
        splits = dict(found) if isinstance(found, dict) else {"train": found}
        if len(splits) == 1:
            splits = {"train": next(iter(splits.values()))}
        tables = {
            name: [from_datasets(f"{source} ({name})", split)]
            for name, split in splits.items()
            if name in SPLITS
        }
    except FedmsError:
        raise
    except Exception as error:  # of many libraries: network, names, formats, disks
        raise FedmsError(f"{source}: cannot be loaded: {brief(error)}") from None
    return joined(source, tables, [])
