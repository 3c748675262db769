"""The protocol of an objective: the targets of a batch, the loss, and the score."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from fedms.data.federated import Samples


class Objective(Protocol):
    """What an expert's outputs are compared with."""

    def targets(self, samples: Samples, picks: np.ndarray) -> Tensor:
        """The targets of the samples at these positions, one row each, on the CPU."""

    def loss(self, outputs: Tensor, targets: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
        """The loss of a batch: its mean over the samples, or one value for each sample, [n]."""

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The sum over the samples of how right the outputs are; larger is better."""
