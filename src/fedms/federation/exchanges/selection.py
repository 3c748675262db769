"""What is chosen once training is over, by the likelihood of all clients' validation labels.

What leaves a client: how far each candidate of a grid is behind the best one in the log-likelihood of its
validation labels (exchange `interpolate`: how far local experts go from their start; exchange `weigh`: a
constant weight, or a scale of the evidence a prior).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.data.federated import Samples
from fedms.federation.assembly import finished_model, local_experts
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges.base import (
    Asked,
    ChoiceExchange,
    Exchange,
    Expected,
    Likelihood,
    log_likelihood,
)
from fedms.federation.messages import Task, Update
from fedms.federation.personal_model import UNSCALED, PersonalModel
from fedms.federation.prediction import INTERPOLATIONS, PRIORS, SCALES, MixtureOutputs
from fedms.federation.recipe import Recipe
from fedms.federation.secure.encoding import Range
from fedms.federation.token_prediction import judge_tokens, of_expert
from fedms.model.expert import same_body


@dataclass(frozen=True)
class Selection:
    """What a finished model takes from all clients' validation data."""

    prior: float
    """How often a client meets its own kind of data, as the mixture assumes."""
    interpolation: float
    """How far local experts go from their start (0) to where training took them (1)."""
    evidence_scales: tuple[float, ...] = UNSCALED
    """How far the gate's evidence is trusted, at each prior between 0 and 1."""

    @classmethod
    def before(cls, recipe: Recipe) -> Selection:
        """As the config says it."""
        interpolation = recipe.config.mixture.interpolation
        return cls(recipe.config.gate.prior, 1.0 if interpolation is None else interpolation)


@dataclass(frozen=True)
class InterpolationLikelihood(Likelihood):
    """By interpolation of `INTERPOLATIONS`."""

    name: ClassVar[str] = "interpolate.log_likelihood"


class InterpolationExchange(ChoiceExchange[InterpolationLikelihood]):
    """How far the local experts go from their start: one number for all clients."""

    kind = "interpolate"
    answered = InterpolationLikelihood
    candidates = INTERPOLATIONS

    def answer(self, view: ClientView, asked: Asked) -> InterpolationLikelihood:
        """Log-likelihood of the client's validation labels under its local expert, at each interpolation."""
        samples = view.samples("validation")
        if view.recipe.of_text:
            found = [
                of_expert(expert, view.runner, samples, view.boundary).log_likelihood(1.0)
                for expert in local_experts(view, *INTERPOLATIONS)
            ]
            return InterpolationLikelihood.told(view, samples, torch.tensor(found, dtype=torch.float32))
        alone, everyone = view.recipe.method.trains_heads_alone(view.config), view.global_expert
        candidates = []
        for expert in local_experts(view, *INTERPOLATIONS):
            head_alone = alone or same_body(expert, everyone)
            logits = view.runner.outputs(expert, samples, view.boundary, head_alone).logits
            assert logits is not None
            candidates.append(logits)
        return InterpolationLikelihood.told(view, samples, log_likelihood(candidates, samples.labels))


@dataclass(frozen=True)
class InterpolationAsked(Asked):
    """The interpolation of local experts that was chosen."""

    interpolation: float


@dataclass(frozen=True)
class WeightLikelihood(Likelihood):
    """By constant weight of `PRIORS`, or by prior between 0 and 1 and scale of `SCALES`, flattened."""

    name: ClassVar[str] = "weigh.log_likelihood"

    @classmethod
    def choices(cls, candidates: Tensor) -> Tensor:
        """One constant weight, or a scale at each prior between 0 and 1."""
        return candidates.view(1 if len(candidates) == len(PRIORS) else len(UNSCALED), -1)


@dataclass(frozen=True)
class Weights:
    """What was chosen: a constant weight, or a scale of the evidence at each prior between 0 and 1."""

    prior: float | None = None
    evidence_scales: tuple[float, ...] | None = None

    def applied(self, selection: Selection) -> Selection:
        """The selection with these."""
        prior = selection.prior if self.prior is None else self.prior
        scales = selection.evidence_scales if self.evidence_scales is None else self.evidence_scales
        return replace(selection, prior=prior, evidence_scales=scales)


class WeightsExchange(Exchange[InterpolationAsked, WeightLikelihood, Weights]):
    """How the two experts are weighed against each other."""

    kind = "weigh"
    split = "validation"
    asked = InterpolationAsked
    answered = WeightLikelihood

    def answer(self, view: ClientView, asked: InterpolationAsked) -> WeightLikelihood:
        """Log-likelihood of the client's validation labels under each candidate."""
        samples = view.samples("validation")
        model = finished_model(view, asked.interpolation, UNSCALED)
        if view.recipe.of_text:
            return WeightLikelihood.told(view, samples, torch.tensor(_of_tokens(view, model, samples)))
        outputs = view.recipe.predictor.judge(model, view.runner, samples, view.boundary)
        if view.recipe.method.gate == "constant":
            candidates = [outputs.log_probabilities(weight) for weight in PRIORS]
        else:
            assert isinstance(outputs, MixtureOutputs)
            scaled = [replace(outputs, scales=(scale,) * len(UNSCALED)) for scale in SCALES]
            candidates = [each.log_probabilities(prior) for prior in PRIORS[1:-1] for each in scaled]
        likelihood = [
            -float(F.nll_loss(candidate, samples.labels, reduction="sum")) for candidate in candidates
        ]
        return WeightLikelihood.told(view, samples, torch.tensor(likelihood))

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """How far each candidate is behind."""
        WeightLikelihood.check(update, _candidates(expected.recipe), expected)

    def ranges(self, task: Task, expected: Expected) -> dict[str, Range]:
        """How far each candidate is behind."""
        return WeightLikelihood.ranges(_candidates(expected.recipe))

    def combine(self, answers: Sequence[WeightLikelihood], recipe: Recipe) -> Weights:
        """The candidates of the best likelihood on all clients' validation data."""
        likelihood = WeightLikelihood.total(answers, recipe)
        if recipe.method.gate == "constant":
            return Weights(prior=PRIORS[int(likelihood.argmax())])
        best = likelihood.view(len(UNSCALED), len(SCALES)).argmax(1).tolist()
        return Weights(evidence_scales=tuple(SCALES[index] for index in best))


def _candidates(recipe: Recipe) -> int:
    """How many ways to weigh the experts are compared."""
    return len(PRIORS) if recipe.method.gate == "constant" else len(UNSCALED) * len(SCALES)


def _of_tokens(view: ClientView, model: PersonalModel, samples: Samples) -> list[float]:
    """Log-likelihood of the tokens under each candidate."""
    outputs = judge_tokens(model, view.runner, samples, view.boundary)
    if view.recipe.method.gate == "constant":
        return [outputs.log_likelihood(weight) for weight in PRIORS]
    scaled = [replace(outputs, scales=(scale,) * len(UNSCALED)) for scale in SCALES]
    return [each.log_likelihood(prior) for prior in PRIORS[1:-1] for each in scaled]
