"""Next-token probabilities in pieces of the vocabulary's matrix, and the mixture of two experts by tokens.

The evidence for the local expert at token t is what it has said of the tokens before, less what the global
expert has said of them:

    log r_t = sum_{i < t} (log p_L(x_i) - log p_G(x_i)),   g_t = sigmoid(logit(prior) + s log r_t)

    p(x_t) = (1 - g_t) p_G(x_t) + g_t p_L(x_t)

At s = 1 this is the Bayes mixture of both experts: over a sequence it loses at most log 1 / prior nats on the
local expert, and log 1 / (1 - prior) on the global one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.model.gate import local_weight

CHUNK = 256
"""Positions whose logits are in memory at a time: of 128,256 words they take 131 MB."""


class _LogProbability(torch.autograd.Function):
    """Of each target; the gradient of the hidden states is made in the same pass over the vocabulary."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, words: Tensor, targets: Tensor) -> Tensor:
        wanted = hidden.requires_grad
        found, slopes = [], []
        for state, target in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True):
            scores = F.log_softmax(F.linear(state, words.to(state.dtype)).float(), dim=1)
            found.append(scores.gather(1, target[:, None])[:, 0])
            if wanted:  # the target's row of words, less the mean row by probability
                slopes.append(words[target] - scores.exp().to(words.dtype) @ words)
        if wanted:
            ctx.save_for_backward(torch.cat(slopes) if slopes else torch.zeros_like(hidden))
        return torch.cat(found) if found else hidden.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradient[:, None] * slopes, None, None


def log_probability(hidden: Tensor, words: Tensor, targets: Tensor) -> Tensor:
    """log p of each target [T] from hidden states [T, d] and the frozen matrix of all words [V, d], [T].

    No more than `CHUNK` positions have logits at a time, forward and backward.
    """
    found: Tensor = _LogProbability.apply(hidden, words, targets)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True)
class Scored:
    """What both experts say of the tokens of some sequences, one sequence after another."""

    everyone: Tensor
    """log p_G of each token, [T]"""
    own: Tensor
    """log p_L of each token, [T]"""
    low: Tensor
    high: Tensor
    """The mixture's likeliest token is the right one for weights g_L from `low` to `high`, [T]; for none
    where `low` is above `high`."""


@torch.no_grad()
def score(everyone: Tensor, own: Tensor, words: Tensor, targets: Tensor) -> Scored:
    """What both experts say of the targets [T], from their hidden states [T, d].

    p_mix(x) >= p_mix(v) is linear in the weight for each other word v, so the weights for which the target is
    the likeliest word are an interval.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    pieces = (torch.split(each, CHUNK) for each in (everyone, own, targets))
    for one, other, target in zip(*pieces, strict=True):
        logs = [F.log_softmax(F.linear(each, words.to(each.dtype)).float(), dim=1) for each in (one, other)]
        said = [each.gather(1, target[:, None]) for each in logs]
        at_global, at_local = (
            said_of.exp() - each.exp() for said_of, each in zip(said, logs, strict=True)
        )  # [t, V]: how far the target is ahead of each word
        crossing = at_global / (at_global - at_local)
        low = torch.where((at_global < 0) & (at_local >= 0), crossing, 0.0).amax(1)
        high = torch.where((at_global >= 0) & (at_local < 0), crossing, 1.0).amin(1)
        never = ((at_global < 0) & (at_local < 0)).any(1)
        parts.append((said[0][:, 0], said[1][:, 0], low.masked_fill(never, 2.0), high))
    if not parts:
        return Scored(*(everyone.new_zeros(0) for _ in range(4)))
    return Scored(*(torch.cat(part) for part in zip(*parts, strict=True)))


def log_ratio_so_far(own: Tensor, everyone: Tensor, counts: np.ndarray) -> Tensor:
    """log r before each token [T], from log p of all tokens [T]; `counts` are the tokens of each sequence."""
    said = (own - everyone).double()
    starts = torch.from_numpy(np.cumsum(counts) - counts)
    before = torch.cat([said.new_zeros(1), said.cumsum(0)])
    return (before[:-1] - before[starts].repeat_interleave(torch.from_numpy(counts))).to(own.dtype)


def mixed(everyone: Tensor, own: Tensor, weight: Tensor) -> Tensor:
    """log ((1 - g) p_G + g p_L), all of one shape; a weight of 0 or 1 is one expert alone."""
    tiny = torch.finfo(weight.dtype).tiny
    shares = (1 - weight).clamp_min(tiny).log(), weight.clamp_min(tiny).log()
    return torch.logaddexp(everyone + shares[0], own + shares[1])


def perplexity(loss: float) -> float:
    """exp of a mean -log p of a token; finite."""
    return math.exp(min(loss, 700))


def token_weights(log_ratio: Tensor | None, like: Tensor, scale: float, prior: float) -> Tensor:
    """g_L of each token, [T]; the prior for every token without evidence."""
    return torch.full_like(like, prior) if log_ratio is None else local_weight(scale * log_ratio, prior)
