"""Whose samples are whose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
