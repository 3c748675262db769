"""Whose samples are whose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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


class FederatedDataset:
    """The samples of a federation, or of one client of it alone."""

    def __init__(
        self, class_names: tuple[str, ...], rows: dict[str, dict[str, np.ndarray]], labels: np.ndarray
    ) -> None:
        self.class_names = class_names
        self._rows = rows
        self._labels = labels

    def samples(self, client: str, split: str) -> Samples:
        rows = self._rows[client][split]
        return Samples(f"{client}/{split}", rows, torch.from_numpy(self._labels[rows]))

    def of_client(self, name: str) -> FederatedDataset:
        return FederatedDataset(self.class_names, {name: self._rows[name]}, self._labels)
