"""What a client's model says of the next tokens: one expert alone, or both, weighed token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fedms.data.federated import Samples
from fedms.federation.personal_model import UNSCALED, PersonalModel
from fedms.federation.prediction import scale_at
from fedms.model.expert import Expert
from fedms.model.next_token import Scored, log_ratio_so_far, mixed, score, token_weights
from fedms.model.token_router import WEIGHT, fit_router, routed
from fedms.training.inputs import batches
from fedms.training.passages import PassageInputs, token_states
from fedms.training.runner import EVALUATION_BATCH, Runner


@dataclass(frozen=True)
class TokenOutputs:
    """What both experts say of all tokens, and which of them count."""

    scored: Scored
    counted: Tensor
    """Whether a token is part of an answer, [T]"""
    log_ratio: Tensor | None
    """log r before each token, or what a router says, [T]; None where the weight is the prior for every token
    """
    scales: Sequence[float] = UNSCALED
    """How far log r is trusted, at each prior between 0 and 1"""

    @property
    def tokens(self) -> int:
        """How many tokens count."""
        return int(self.counted.sum())

    def local_weight(self, prior: float) -> Tensor:
        """g_L of each token, [T]"""
        return token_weights(self.log_ratio, self.scored.own, scale_at(self.scales, prior), prior)

    def log_likelihood(self, prior: float) -> float:
        """Sum of log p over the tokens that count."""
        said = mixed(self.scored.everyone, self.scored.own, self.local_weight(prior))
        return float(said[self.counted].double().sum())

    def loss(self, prior: float) -> float:
        """Mean of -log p over the tokens that count, in nats."""
        return -self.log_likelihood(prior) / self.tokens

    def right(self, prior: float) -> int:
        """Tokens that count for which the likeliest one is the right one."""
        weight = self.local_weight(prior)
        hits = (self.scored.low <= weight) & (weight <= self.scored.high)
        return int(hits[self.counted].sum())

    def global_share(self, prior: float) -> float:
        """Mean weight of the global expert over the tokens that count."""
        return 1 - float(self.local_weight(prior)[self.counted].mean())


def judge_tokens(model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> TokenOutputs:
    """What the experts that the method predicts with say of these samples."""
    if model.method.predicts == "global":
        return of_expert(model.global_expert, runner, samples, boundary, "global")
    own = _states(runner, model.local_expert, samples, boundary)
    if model.method.predicts == "local":
        return _outputs(runner, samples, own, own, False)
    everyone = _frozen_states(runner, "global", model.global_expert, samples, boundary)
    if WEIGHT in model.arrays:
        found = _outputs(runner, samples, everyone, own, False)
        return replace(found, log_ratio=routed(model.arrays, everyone))
    by_tokens = model.method.gate == "learned"
    return _outputs(runner, samples, everyone, own, by_tokens, model.evidence_scales)


def with_router(model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> PersonalModel:
    """The model with a router by tokens, fitted to these samples, which no expert has trained on."""
    everyone = _frozen_states(runner, "global", model.global_expert, samples, boundary)
    own = _states(runner, model.local_expert, samples, boundary)
    found = _outputs(runner, samples, everyone, own, False)
    count = found.counted
    router = fit_router(everyone[count], found.scored.everyone[count], found.scored.own[count])
    arrays = model.arrays | router
    return PersonalModel(arrays, model.method, model.config, model.network_kept, model.evidence_scales)


def of_expert(
    expert: Expert | None, runner: Runner, samples: Samples, boundary: int, frozen: str | None = None
) -> TokenOutputs:
    """What one expert alone says, at any prior; `frozen` is its role, where it stays the same over rounds."""
    if frozen is None:
        states = _states(runner, expert, samples, boundary)
    else:
        states = _frozen_states(runner, frozen, expert, samples, boundary)
    return _outputs(runner, samples, states, states, False)


def _outputs(
    runner: Runner,
    samples: Samples,
    everyone: Tensor,
    own: Tensor,
    by_tokens: bool,
    scales: Sequence[float] = UNSCALED,
) -> TokenOutputs:
    inputs, device = cast(PassageInputs, runner.cache.inputs), runner.backbone.device
    ids, answers = inputs.whole(samples.rows), inputs.answers(samples.rows)
    counts = np.array([len(each) - 1 for each in ids])
    targets = torch.from_numpy(np.concatenate([each[1:] for each in ids]).astype(np.int64))
    counted = np.concatenate(
        [np.arange(count) >= count - answer for count, answer in zip(counts, answers, strict=True)]
    )
    found = score(everyone.to(device), own.to(device), runner.backbone.vocabulary, targets.to(device))
    scored = Scored(*(part.cpu() for part in (found.everyone, found.own, found.low, found.high)))
    ratio = log_ratio_so_far(scored.own, scored.everyone, counts) if by_tokens else None
    return TokenOutputs(scored, torch.from_numpy(counted), ratio, scales)


def _frozen_states(
    runner: Runner, role: str, expert: Expert | None, samples: Samples, boundary: int
) -> Tensor:
    compute = partial(_states, runner, expert, samples, boundary)
    return runner.frozen_features(role, expert, samples, boundary, compute)


@torch.no_grad()
def _states(runner: Runner, expert: Expert | None, samples: Samples, boundary: int) -> Tensor:
    """States that predict a token each, sample by sample, [T, d], on the CPU."""
    expert = expert.to(runner.backbone.device) if expert else None
    lengths = runner.cache.inputs.lengths(samples.rows)
    found: list[Tensor] = [torch.empty(0)] * len(samples)
    for picks in batches(lengths, EVALUATION_BATCH):
        states, _ = token_states(runner, expert, samples, boundary, picks)
        for pick, part in zip(picks, torch.split(states.cpu(), lengths[picks].tolist()), strict=True):
            found[pick] = part
    return torch.cat(found)
