"""What is chosen once the global expert is trained, by the likelihood of all clients' validation labels.

What leaves a client: how far each candidate of a grid is behind the best one in the log-likelihood of its
validation labels (exchange `head`: how much of the discriminant goes into the global expert's head; exchange
`label-prior`: how many samples everyone's label shares count in a client's own).
"""

from __future__ import annotations

from typing import ClassVar

from fedms.federation.assembly import received_calibrated
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges.base import Asked, ChoiceExchange, Likelihood, log_likelihood
from fedms.federation.initialization import label_prior_shift
from fedms.model.discriminant import Discriminant
from fedms.model.expert import Expert
from fedms.model.heads import HEAD_SHARES, mixed_head, statistics_head

LABEL_PRIORS = (1.0, 3.0, 10.0)
"""Candidates for how many samples everyone's label shares count in a client's."""


class HeadLikelihood(Likelihood):
    """By share of `HEAD_SHARES`."""

    name: ClassVar[str] = "head.log_likelihood"


class HeadExchange(ChoiceExchange[HeadLikelihood]):
    """How much of the discriminant of the trained features goes into the global expert's head."""

    kind = "head"
    answered = HeadLikelihood
    candidates = HEAD_SHARES

    def answer(self, view: ClientView, asked: Asked) -> HeadLikelihood:
        """Log-likelihood of the client's validation labels under each mixture of both heads."""
        samples, expert = view.samples("validation"), view.global_expert
        assert expert is not None
        derived = statistics_head(Discriminant.from_arrays(received_calibrated(view)))
        x = view.runner.frozen_outputs("global", expert, samples, view.boundary).features
        heads = (mixed_head(expert.arrays, derived, share) for share in HEAD_SHARES)
        candidates = [Expert(expert.arrays | head, expert.scale).logits(x) for head in heads]
        return HeadLikelihood.told(view, samples, log_likelihood(candidates, samples.labels))


class LabelPriorLikelihood(Likelihood):
    """By number of samples of `LABEL_PRIORS`."""

    name: ClassVar[str] = "label_prior.log_likelihood"


class LabelPriorExchange(ChoiceExchange[LabelPriorLikelihood]):
    """How many samples everyone's label shares count in a client's label prior."""

    kind = "label-prior"
    answered = LabelPriorLikelihood
    candidates = LABEL_PRIORS

    def answer(self, view: ClientView, asked: Asked) -> LabelPriorLikelihood:
        """Log-likelihood of the client's validation labels under the global expert with each label prior."""
        samples, expert = view.samples("validation"), view.global_expert
        logits = view.runner.frozen_outputs("global", expert, samples, view.boundary).logits
        assert logits is not None
        candidates = [logits + label_prior_shift(view, number) for number in LABEL_PRIORS]
        return LabelPriorLikelihood.told(view, samples, log_likelihood(candidates, samples.labels))
