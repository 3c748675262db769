"""Who holds which samples: the whole federation's data set, and the view of one client.

A client is opened from `FederatedDataset.of_client`, in a simulation and at a real site alike. That view
holds the client's own rows and the evaluation rows that it was handed, and nothing else. Rows keep their
numbers, so that caches and seeds do not depend on who opens a client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from fedms.core import seeds
from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt
from fedms.data.images import Images
from fedms.data.partition import ClientSplit, Partition
from fedms.data.sources import Dataset

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Samples:
    """Some samples of one owner (`client-03/train`), in a fixed order."""

    owner: str
    rows: np.ndarray
    """Their rows in the data set, int64 [n]"""
    labels: Tensor
    """int64 [n]"""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Rows:
    """Some rows of a data set, with their inputs and labels."""

    numbers: np.ndarray
    """Row numbers in the data set, int64 [m], sorted and unique"""
    inputs: Sequence[Any]
    """[m] texts, or pictures that are decoded when asked for"""
    labels: np.ndarray
    """int64 [m], indices into the class names"""

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """The places of these row numbers, int64 [len(rows)].

        Raises:
            KeyError: a row is not among them.
        """
        found = np.searchsorted(self.numbers, rows)
        missing = found == len(self.numbers)
        missing[~missing] = self.numbers[found[~missing]] != rows[~missing]
        if missing.any():
            raise KeyError(f"row {int(rows[np.argmax(missing)])} is not held here")
        return found

    def select(self, rows: np.ndarray) -> Rows:
        """These rows alone, in sorted order."""
        numbers = np.unique(rows)
        at = self.positions(numbers)
        inputs = self.inputs
        some = inputs.select(at) if isinstance(inputs, Images) else [inputs[place] for place in at]
        return Rows(numbers, some, self.labels[at])


class OpenRows(Sequence[Any]):
    """Inputs by row number, of all the rows that were added: all inputs that a process may read."""

    def __init__(self, *blocks: Rows) -> None:
        self._blocks: list[Rows] = []
        self._block_of = np.empty(0, dtype=np.int32)
        for rows in blocks:
            self.add(rows)

    def add(self, rows: Rows) -> None:
        """Make these rows readable."""
        if not len(rows.numbers):
            return
        beyond = int(rows.numbers[-1]) + 1 - len(self._block_of)
        if beyond > 0:
            grown = max(beyond, len(self._block_of))
            self._block_of = np.concatenate([self._block_of, np.full(grown, -1, dtype=np.int32)])
        self._block_of[rows.numbers] = len(self._blocks)
        self._blocks.append(rows)

    def __len__(self) -> int:
        return int((self._block_of >= 0).sum())

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Any]: ...
    def __getitem__(self, row: int | slice) -> Any:
        """The input of a row number.

        Raises:
            KeyError: the row is not held here.
        """
        if isinstance(row, slice):
            raise TypeError("rows are read by their number, one at a time")
        if not (0 <= row < len(self._block_of)) or self._block_of[row] < 0:
            raise KeyError(f"row {row} is not held here")
        block = self._blocks[self._block_of[row]]
        return block.inputs[int(block.positions(np.array([row]))[0])]


@dataclass(frozen=True)
class EvaluationRows:
    """The rows on which `accuracy_global` is measured: a sample of all clients' rows, or a public file.

    They are the only rows of others that a client ever holds, and only where it is handed them.
    """

    splits: Mapping[str, np.ndarray]
    """Row numbers by split, sorted int64"""
    rows: Rows


@dataclass(frozen=True)
class FederatedDataset:
    """Samples of a federation by client and split. `of_client` gives the part that one client may hold."""

    kind: Literal["text", "image"]
    class_names: tuple[str, ...]
    """Of the whole federation, in the order of the labels"""
    clients: Mapping[str, ClientSplit]
    rows: Rows
    """The rows of these clients"""
    evaluation: EvaluationRows | None = None
    inputs: OpenRows = field(init=False, repr=False)
    """Texts or pictures by row number: those of `rows` and of `evaluation`"""

    def __post_init__(self) -> None:
        handed = [self.evaluation.rows] if self.evaluation else []
        object.__setattr__(self, "inputs", OpenRows(*handed, self.rows))

    def samples(self, client: str, split: str) -> Samples:
        """One client's train, validation or test samples.

        Raises:
            FedmsError: this data set does not hold that client.
        """
        rows = getattr(self._client(client), split)
        return _samples(f"{client}/{split}", rows, self.rows)

    def everyone(self, split: str) -> Samples:
        """The evaluation rows of all clients together.

        Raises:
            FedmsError: this data set was not handed them.
        """
        if self.evaluation is None or split not in self.evaluation.splits:
            raise FedmsError(
                f"everyone's {excerpt(split)} samples are not held here: hand them to `of_client`"
            )
        return _samples(f"everyone/{split}", self.evaluation.splits[split], self.evaluation.rows)

    def counts(self) -> np.ndarray:
        """Training and validation samples of each class at every client: int64 [clients, classes]."""
        counts = np.zeros((len(self.clients), len(self.class_names)), dtype=np.int64)
        for line, client in zip(counts, self.clients.values(), strict=True):
            rows = np.concatenate([client.train, client.validation])
            line += np.bincount(self.rows.labels[self.rows.positions(rows)], minlength=len(line))
        return counts

    def of_client(self, name: str, evaluation: EvaluationRows | None = None) -> FederatedDataset:
        """The data set of one client: its own rows, under the numbers that they have here, and no other rows.

        The view has its own lists of texts and of places of pictures. A picture in Parquet or in a saved
        `datasets` folder stays in its table; the view holds the row numbers of its own pictures there.

        Args:
            name: the client.
            evaluation: the evaluation rows that the client is handed; default: none, as at a real site
                without a public file.

        Raises:
            FedmsError: this data set does not hold that client.
        """
        split = self._client(name)
        own = np.concatenate([split.train, split.validation, split.test])
        return FederatedDataset(self.kind, self.class_names, {name: split}, self.rows.select(own), evaluation)

    def _client(self, name: str) -> ClientSplit:
        if name not in self.clients:
            some = ", ".join(list(self.clients)[:3]) + (", ..." if len(self.clients) > 3 else "")
            raise FedmsError(f"no client {excerpt(repr(name))} in this data set; it holds {some}")
        return self.clients[name]


def federated(
    dataset: Dataset, parts: Partition, splits: Iterable[str] = (), limit: int | None = None, seed: int = 0
) -> FederatedDataset:
    """The whole federation's data set.

    Args:
        dataset: all samples.
        parts: whose they are.
        splits: `validation` or `test`: evaluate on these splits of all clients together. Public samples, if
            there are any, are the whole test split.
        limit: keep at most this many evaluation rows of each split, drawn by the seed; default: all.
        seed: the experiment's.
    """
    rows = Rows(np.arange(len(dataset.labels)), dataset.inputs, dataset.labels)
    chosen = {split: _evaluation_rows(parts, split, limit, seed) for split in splits}
    if dataset.is_public is not None and "test" in chosen:
        chosen["test"] = np.flatnonzero(dataset.is_public)
    evaluation = EvaluationRows(chosen, rows.select(np.concatenate([*chosen.values()]))) if chosen else None
    if dataset.is_public is not None:
        rows = rows.select(np.flatnonzero(~dataset.is_public))
    clients = {client.name: client for client in parts.clients}
    return FederatedDataset(dataset.kind, dataset.class_names, clients, rows, evaluation)


def repeated(digests: Sequence[bytes], parts: Partition) -> str | None:
    """A line that says how many test samples are also training or validation samples, of any client.

    Args:
        digests: one of each sample's input, by row, as `Dataset.check` gives them.
        parts: whose the samples are.
    """
    if not parts.clients:
        return None
    tests = np.concatenate([client.test for client in parts.clients])
    others = np.concatenate([rows for client in parts.clients for rows in (client.train, client.validation)])
    known = {digests[row]: row for row in others[::-1]}
    same = [row for row in np.sort(tests) if digests[row] in known]
    if not same:
        return None
    return (
        f"{len(same):,} of {len(tests):,} test samples are also training or validation samples "
        f"(sample {same[0] + 1} is the same as {known[digests[same[0]]] + 1}): test accuracy will be too high"
    )


def _evaluation_rows(parts: Partition, split: str, limit: int | None, seed: int) -> np.ndarray:
    rows = np.sort(np.concatenate([getattr(client, split) for client in parts.clients]))
    if limit is not None and limit < len(rows):
        generator = seeds.numpy_generator(seed, "everyone", split)
        rows = np.sort(generator.choice(rows, limit, replace=False))
    return rows


def _samples(owner: str, rows: np.ndarray, held: Rows) -> Samples:
    return Samples(owner, rows, torch.from_numpy(held.labels[held.positions(rows)]))
