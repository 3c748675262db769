"""What is chosen once the global expert is trained, by the likelihood of all clients' validation labels.

What leaves a client: the log-likelihood of its validation labels under each candidate of a grid (exchange
`head`: how much of the discriminant goes into the global expert's head; exchange `label-prior`: how many
samples everyone's label shares count in a client's own).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.federation.assembly import received_calibrated
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges.base import Asked, Exchange, Expected, Likelihood
from fedms.federation.initialization import label_prior_shift
from fedms.federation.messages import Task, Update
from fedms.federation.recipe import Recipe
from fedms.model.discriminant import Discriminant
from fedms.model.expert import Expert
from fedms.model.heads import HEAD_SHARES, mixed_head, statistics_head

LABEL_PRIORS = (1.0, 3.0, 10.0)
"""Candidates for how many samples everyone's label shares count in a client's."""


class HeadLikelihood(Likelihood):
    """By share of `HEAD_SHARES`."""

    name: ClassVar[str] = "head.log_likelihood"


class HeadExchange(Exchange[Asked, HeadLikelihood, float]):
    """How much of the discriminant of the trained features goes into the global expert's head."""

    kind = "head"
    split = "validation"
    asked = Asked
    answered = HeadLikelihood

    def answer(self, view: ClientView, asked: Asked) -> HeadLikelihood:
        """Log-likelihood of the client's validation labels under each mixture of both heads."""
        samples, expert = view.samples("validation"), view.global_expert
        assert expert is not None
        derived = statistics_head(Discriminant.from_arrays(received_calibrated(view)))
        x = view.runner.frozen_outputs("global", expert, samples, view.boundary).features
        heads = (mixed_head(expert.arrays, derived, share) for share in HEAD_SHARES)
        candidates = [Expert(expert.arrays | head, expert.scale).logits(x) for head in heads]
        return HeadLikelihood(len(samples), _log_likelihood(candidates, samples.labels))

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """A log-likelihood a share."""
        HeadLikelihood.check(update, len(HEAD_SHARES), expected.declared["validation"])

    def combine(self, answers: Sequence[HeadLikelihood], recipe: Recipe) -> float:
        """The share of the best likelihood on all clients' validation data."""
        return HEAD_SHARES[int(HeadLikelihood.total(answers).argmax())]


class LabelPriorLikelihood(Likelihood):
    """By number of samples of `LABEL_PRIORS`."""

    name: ClassVar[str] = "label_prior.log_likelihood"


class LabelPriorExchange(Exchange[Asked, LabelPriorLikelihood, float]):
    """How many samples everyone's label shares count in a client's label prior."""

    kind = "label-prior"
    split = "validation"
    asked = Asked
    answered = LabelPriorLikelihood

    def answer(self, view: ClientView, asked: Asked) -> LabelPriorLikelihood:
        """Log-likelihood of the client's validation labels under the global expert with each label prior."""
        samples, expert = view.samples("validation"), view.global_expert
        logits = view.runner.frozen_outputs("global", expert, samples, view.boundary).logits
        assert logits is not None
        candidates = [logits + label_prior_shift(view, number) for number in LABEL_PRIORS]
        return LabelPriorLikelihood(len(samples), _log_likelihood(candidates, samples.labels))

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """A log-likelihood a candidate."""
        LabelPriorLikelihood.check(update, len(LABEL_PRIORS), expected.declared["validation"])

    def combine(self, answers: Sequence[LabelPriorLikelihood], recipe: Recipe) -> float:
        """The number of the best likelihood on all clients' validation data."""
        return LABEL_PRIORS[int(LabelPriorLikelihood.total(answers).argmax())]


def _log_likelihood(candidates: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Log-likelihood of labels [n] under each candidate's logits [n, C]."""
    return torch.tensor([-float(F.cross_entropy(each, labels, reduction="sum")) for each in candidates])
