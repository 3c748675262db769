"""What an honest-but-curious server finds in the messages of one client.

The server knows the frozen encoder and has a list of candidate samples, of which some are the client's.
Features are those of `fedms.model.statistics.normalise`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedms.model.statistics import FeatureSums

RIDGE = 1e-3
"""Added to the second moment, which is singular with fewer samples than dimensions."""


def auc(members: Tensor, others: Tensor) -> float:
    """How often a member's score is above another's: 1 without an error, .5 by guessing; ties count half."""
    above = (members[:, None] > others[None]).double() + 0.5 * (members[:, None] == others[None]).double()
    return float(above.mean())


def leverage(second: Tensor, candidates: Tensor) -> Tensor:
    """-xᵀ (S + RIDGE I)⁻¹ x of candidates [n, d]: high for what lies in the span of S, [n]."""
    size = second.shape[0]
    factor = torch.linalg.cholesky(second + RIDGE * torch.eye(size, dtype=torch.float64))
    solved: Tensor = torch.linalg.solve_triangular(factor, candidates.double().T, upper=False)
    return -solved.square().sum(0)


def likeness(sums: FeatureSums, candidates: Tensor) -> Tensor:
    """The largest cosine of candidates [n, d] to a class mean that was sent, [n]."""
    held = sums.counts > 0
    if not held.any():
        return torch.zeros(len(candidates))
    means = torch.nn.functional.normalize(sums.sums[held], dim=1)
    return (torch.nn.functional.normalize(candidates.double(), dim=1) @ means.T).max(1).values


def recovered(arrays: Mapping[str, Tensor], candidates: Tensor) -> dict[int, int]:
    """By class that was sent with one sample: the row of the candidate [n, d] that this sample is."""
    sums = FeatureSums.from_arrays(arrays)
    found = {}
    for label in (sums.counts == 1).nonzero().flatten().tolist():
        distance = (candidates.double() - sums.sums[label]).norm(dim=1)
        if float(distance.min()) < 1e-2:
            found[label] = int(distance.argmin())
    return found
