"""What an honest-but-curious server finds in the messages of one client.

The server knows the frozen encoder and has a list of candidate samples with their labels, of which some are
the client's. Features are those of `fedms.model.statistics.normalise`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.model.discriminant import Discriminant
from fedms.model.statistics import FeatureSums

RIDGE = 1e-3
"""Added to matrices that may be singular."""
CLOSE = 1e-2
"""Distance below which sums of features are of the same samples."""
NOISE = 1e-7
"""Variance of a message's numbers that an attacker allows for rounding."""
DRAWS, BACKGROUNDS = 1000, 20
"""Splits from which an attacker learns how messages spread, and into how many of them it puts a candidate."""

Sent = Callable[[Tensor], Tensor]
"""From sums over a split [..., numbers] to what is sent of them."""


def auc(members: Tensor, others: Tensor) -> float:
    """How often a member's score is above another's: 1 without an error, .5 by guessing; ties count half."""
    above = (members[:, None] > others[None]).double() + 0.5 * (members[:, None] == others[None]).double()
    return float(above.mean())


# feature sums


def leverage(second: Tensor, candidates: Tensor) -> Tensor:
    """-xᵀ (S + RIDGE I)⁻¹ x of candidates [n, d]: high for what lies in the span of S, [n]."""
    size = second.shape[0]
    factor = torch.linalg.cholesky(second + RIDGE * torch.eye(size, dtype=torch.float64))
    solved: Tensor = torch.linalg.solve_triangular(factor, candidates.double().T, upper=False)
    return -solved.square().sum(0)


def share_of_mean(sums: FeatureSums, everyone: Discriminant, candidates: Tensor, labels: Tensor) -> Tensor:
    """How much likelier a class's mean is with a candidate among its samples than without, in nats, [n].

    The mean of n samples lies around everyone's with covariance Sigma / n; with x among them it is moved by
    (x - mu) / n. Candidates [n, d] of a class of which nothing was sent come last.
    """
    counts = sums.counts[labels].clamp_min(1)[:, None]
    precision, centre = everyone.precision.double(), everyone.means.double()[labels]
    away, moved = candidates.double() - centre, sums.sums[labels] / counts - centre
    found = ((moved - away / counts / 2) @ precision * away).sum(1)
    return found.masked_fill(sums.counts[labels] == 0, -torch.inf)


def recovered(sums: FeatureSums, candidates: Tensor, labels: Tensor, size: int) -> dict[int, list[int]]:
    """By class that was sent with this number of samples: the candidates [n, d] whose sum was sent."""
    found = {}
    for label in (sums.counts == size).nonzero().flatten().tolist():
        rows = (labels == label).nonzero().flatten()
        tried = torch.combinations(rows, size)
        x = candidates.double()
        distance = (sum(x[tried[:, place]] for place in range(size)) - sums.sums[label]).norm(dim=1)
        if len(distance) and float(distance.min()) < CLOSE:
            found[label] = tried[int(distance.argmin())].tolist()
    return found


# numbers that add up over a split


def named(message: Tensor, numbers: Tensor, sent: Sent, size: int) -> float:
    """The chance to name the split of that size behind a message [numbers], by the candidates' numbers
    [n, numbers]: splits that send the same cannot be told apart.
    """
    tried = torch.combinations(torch.arange(len(numbers)), size)
    distance = (sent(numbers[tried].sum(1)) - message).norm(dim=1)
    return 1 / int((distance <= distance.min() + RIDGE).sum())


def in_split(message: Tensor, numbers: Tensor, sent: Sent, size: int, generator: torch.Generator) -> Tensor:
    """How much likelier a message [numbers] of a split of that size is with a candidate in it, in nats, [n].

    The attacker draws splits of the candidates, whose numbers [n, numbers] it knows, and takes the messages
    for normally distributed.
    """
    drawn = torch.stack([torch.randperm(len(numbers), generator=generator)[:size] for _ in range(DRAWS)])
    messages = sent(numbers[drawn].sum(1))
    centre = messages.mean(0)
    spread = torch.cov(messages.T) + NOISE * torch.eye(messages.shape[1], dtype=messages.dtype)
    others = numbers[drawn[:BACKGROUNDS, 1:]].sum(1)
    moved = torch.stack([sent(others + own).mean(0) for own in numbers]) - centre
    weights: Tensor = torch.linalg.solve(spread, moved.T).T
    return weights @ (message - centre) - (weights * moved).sum(1) / 2


# updates and experts


def alignment(start: Tensor, trained: Tensor, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """How far a head's weight [C, d] moved the way in which a candidate x [n, d] pulls it, [n].

    The gradient of the cross entropy is (p - y) xᵀ, with the probabilities p of the logits [n, C] before.
    """
    pull = F.one_hot(labels, logits.shape[1]) - F.softmax(logits, dim=1)
    return ((x @ (trained - start).T) * pull).sum(1)


def likeliness(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """log p of the candidates' labels [n] under a model, from [n, C]: training samples have the lowest
    losses.
    """
    return log_probabilities.gather(1, labels[:, None])[:, 0]
