"""A public evaluation file: samples that every site may hold a copy of, so that personal models can be judged
on more than their own data without anybody's data moving.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.data import sources
from fedms.data.federated import EvaluationRows, Rows
from fedms.data.sources import Dataset

SPLIT = "split"
"""The column that says which split a sample belongs to."""


def read_public(path: Path, config: Config, class_names: tuple[str, ...], first: int) -> EvaluationRows:
    """The evaluation rows in a public file, checked by the SHA-256 that the config names, if it names one.

    Args:
        first: the number of its first row; rows before it are others.

    Raises:
        FedmsError: the file cannot be read, is another one, has a class of its own, or lacks a split.
    """
    wanted = config.evaluation.public_sha256
    if wanted and digest(path) != wanted:
        raise FedmsError(f"{path}: is not the public file of evaluation.public_sha256")
    named = config.data.model_copy(update={"source": str(path), "limit": None, "classes": class_names})
    dataset = sources.load(named, config.seed)
    numbers = first + np.arange(len(dataset.labels))
    splits = {split: numbers[own] for split, own in by_split(dataset).items()}
    if missing := [split for split in config.evaluation.splits if not len(splits.get(split, ()))]:
        raise FedmsError(f"{path}: no sample is of the split {missing[0]!r} (column {SPLIT!r})")
    chosen = {split: splits[split] for split in config.evaluation.splits}
    return EvaluationRows(chosen, Rows(numbers, dataset.inputs, dataset.labels))


def by_split(dataset: Dataset) -> dict[str, np.ndarray]:
    """The rows of each value of the column `split`, int64, ascending; without the column all are `test`."""
    if SPLIT not in dataset.columns:
        return {"test": np.arange(len(dataset.labels))}
    column = dataset.columns[SPLIT]
    return {str(value): np.flatnonzero(column == value) for value in np.unique(column)}


def digest(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        FedmsError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
