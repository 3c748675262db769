"""Clients send sums of their training features once; then the discriminant's shrinkage and temperature are
chosen on validation data.

What leaves a client: class counts and class feature sums of its training features, with
`statistics.second_moment: true` their second moment, too (exchange `statistics`), and how far each shrinkage
and temperature of a grid is behind the best ones in the log-likelihood of its validation labels (exchange
`calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges.base import Answer, Asked, Exchange, Expected, Likelihood
from fedms.federation.exchanges.checks import ROUNDING, RefusalError, check_shapes
from fedms.federation.messages import Task, Update
from fedms.federation.private.noise import deviations
from fedms.federation.recipe import Recipe
from fedms.federation.secure.encoding import Range, between
from fedms.model.discriminant import TEMPERATURES, Discriminant
from fedms.model.noisy_sums import NoisySums
from fedms.model.statistics import FeatureSums

COUNTS_WEIGHT = 0.25
"""Weight of a class count in a private release, where a feature has length 1. The sums get 3 % more noise for
it."""
TAIL = 12.0
"""Deviations beyond which noise is cut off in a secure sum: it is never there."""


@dataclass(frozen=True)
class FeaturesAsked(Asked):
    """Which features the federation's statistics are about."""

    features: Literal["backbone", "global"]
    """The frozen backbone's, or the global expert's."""


@dataclass(frozen=True)
class Sums(Answer):
    """A client's feature sums."""

    sums: dict[str, Tensor]
    """`FeatureSums.to_arrays`"""
    clients: int = 1
    """Over how many clients"""

    def arrays(self) -> dict[str, Tensor]:
        """The sums."""
        return self.sums

    @classmethod
    def of(cls, update: Update) -> Self:
        """What an update says."""
        return cls(int(update.weight), update.arrays, update.metrics.get("clients", 1))


class StatisticsExchange(Exchange[FeaturesAsked, Sums, FeatureSums]):
    """Sums of training features become the federation's sums.

    With the second moment only the total is read. Without it the covariance is estimated from the single
    clients' class means; so a secure sum brings it.
    """

    kind = "statistics"
    split = "train"
    asked = FeaturesAsked
    answered = Sums

    def answer(self, view: ClientView, asked: FeaturesAsked) -> Sums:
        """Sums over the client's training features."""
        samples = view.samples("train")
        statistics = view.config.statistics
        x = _features(view, asked, "train")
        kept = torch.bincount(samples.labels, minlength=view.classes)[samples.labels] >= statistics.least
        sums = FeatureSums.of(x[kept], samples.labels[kept], view.classes, view.recipe.sends_second_moment)
        return Sums(len(samples), sums.to_arrays(statistics.rank))

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """Sums over the declared number of features, each of length sqrt(d)."""
        size, statistics = expected.backbone.feature_size, expected.recipe.config.statistics
        rank = statistics.rank
        samples = expected.declared["train"]
        classes = expected.classes
        shapes: dict[str, tuple[int, ...]] = {
            "statistics.counts": (classes,),
            "statistics.sums": (classes, size),
        }
        if expected.recipe.sends_second_moment:
            if rank is None or rank >= size:
                shapes["statistics.second"] = (size * (size + 1) // 2,)
            else:
                shapes |= {"statistics.factor": (size, rank), "statistics.rest": (1,)}
        check_shapes(
            update.arrays, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        )
        if expected.recipe.private:
            return  # noise may be of any size
        arrays = {name: array.double() for name, array in update.arrays.items()}
        counts = arrays["statistics.counts"]
        whole = not (counts < 0).any() and torch.equal(counts, counts.round())
        counted = float(counts.sum())
        if not whole or counted > samples or (statistics.least == 1 and counted != samples):
            raise RefusalError(f"statistics.counts are not {samples} samples counted")
        if ((counts > 0) & (counts < statistics.least)).any():
            raise RefusalError(f"statistics.counts has a class of fewer than {statistics.least} samples")
        if (arrays["statistics.sums"].norm(dim=1) > counts * math.sqrt(size) * (1 + ROUNDING)).any():
            raise RefusalError("statistics.sums are larger than its samples' features can make them")
        most, large = samples * size * (1 + ROUNDING), False
        if "statistics.second" in arrays:
            large = float(arrays["statistics.second"].abs().max()) > most
        elif "statistics.rest" in arrays:
            rest = float(arrays["statistics.rest"])
            large = float(arrays["statistics.factor"].square().sum()) > most or not 0 <= rest <= most
        if large:
            raise RefusalError("the second moment is larger than its samples' features can make it")

    def ranges(self, task: Task, expected: Expected) -> dict[str, Range]:
        """As the features, each of length sqrt(d), can make them."""
        size, samples = expected.backbone.feature_size, expected.declared["train"]
        long, large = (samples * most * (1 + ROUNDING) for most in (math.sqrt(size), size))
        ranges = {
            "statistics.counts": between((expected.classes,), 0, samples, whole=True),
            "statistics.sums": between((expected.classes, size), -long, long),
        }
        if expected.recipe.sends_second_moment:
            ranges["statistics.second"] = between((size * (size + 1) // 2,), -large, large)
        if expected.recipe.private:
            beyond = {name: TAIL * each for name, each in deviations(expected.recipe, _spreads(size)).items()}
            counts, sums = beyond["statistics.counts"], long + beyond["statistics.sums"]
            ranges["statistics.counts"] = between((expected.classes,), -counts, samples + counts)
            ranges["statistics.sums"] = between((expected.classes, size), -sums, sums)
        return ranges

    def spreads(self, expected: Expected) -> dict[str, float]:
        """Counts and sums: a sample adds 1 to one count, and a feature of length sqrt(d) to one sum."""
        return _spreads(expected.backbone.feature_size)

    def summed(self, totals: Mapping[str, Tensor], parts: Mapping[str, Sequence[Expected]]) -> Update:
        """The sums, and over how many clients they are."""
        clients = len(parts["statistics.sums"])
        return replace(super().summed(totals, parts), metrics={"clients": clients})

    def combine(self, answers: Sequence[Sums], recipe: Recipe) -> FeatureSums:
        """The sums over all clients' samples."""
        parts = [FeatureSums.from_arrays(answer.sums) for answer in answers]
        if recipe.private:
            total = FeatureSums.total(parts)
            many = math.sqrt(sum(answer.clients for answer in answers))
            noise = deviations(recipe, _spreads(total.sums.shape[1]))
            each = (noise["statistics.counts"] * many, noise["statistics.sums"] * many)
            return NoisySums(total.counts, total.sums, None, *each)
        statistics = recipe.config.statistics
        estimates = statistics.second_moment == "auto" and not recipe.sends_second_moment
        sums = FeatureSums.estimated(parts) if estimates else FeatureSums.total(parts)
        if not float(sums.counts.sum()):
            least = statistics.least
            raise FedmsError(f"statistics.least: no client has {least} samples of any class; lower it")
        return sums


@dataclass(frozen=True)
class CalibrationLikelihood(Likelihood):
    """By shrinkage of `Recipe.shrinkages` and temperature of `TEMPERATURES`, flattened."""

    name: ClassVar[str] = "calibrate.log_likelihood"


class CalibrationExchange(Exchange[FeaturesAsked, CalibrationLikelihood, Tensor]):
    """The likelihood of validation labels chooses the discriminant's shrinkage and temperature."""

    kind = "calibrate"
    split = "validation"
    asked = FeaturesAsked
    answered = CalibrationLikelihood

    def answer(self, view: ClientView, asked: FeaturesAsked) -> CalibrationLikelihood:
        """Log-likelihood of the client's validation labels under the discriminant, at each candidate."""
        samples = view.samples("validation")
        everyone = Discriminant.from_arrays(view.received)
        x = _features(view, asked, "validation")
        likelihood = everyone.log_likelihood(x, samples.labels, view.recipe.shrinkages)
        return CalibrationLikelihood.told(view, samples, likelihood.flatten())

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """How far each candidate is behind."""
        candidates = len(expected.recipe.shrinkages) * len(TEMPERATURES)
        CalibrationLikelihood.check(update, candidates, expected)

    def ranges(self, task: Task, expected: Expected) -> dict[str, Range]:
        """How far each candidate is behind."""
        return CalibrationLikelihood.ranges(len(expected.recipe.shrinkages) * len(TEMPERATURES))

    def combine(self, answers: Sequence[CalibrationLikelihood], recipe: Recipe) -> Tensor:
        """How far each candidate is behind, summed over clients, [shrinkages, temperatures]."""
        return CalibrationLikelihood.total(answers, recipe).view(-1, len(TEMPERATURES))


def _spreads(size: int) -> dict[str, float]:
    norm = math.hypot(1.0, COUNTS_WEIGHT)
    return {"statistics.counts": norm / COUNTS_WEIGHT, "statistics.sums": norm * math.sqrt(size)}


def _features(view: ClientView, asked: FeaturesAsked, split: str) -> Tensor:
    """Features that the federation's statistics are about, [n, d]."""
    expert = view.global_expert if asked.features == "global" else None
    return view.runner.frozen_outputs(asked.features, expert, view.samples(split), view.boundary).features
