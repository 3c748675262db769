"""The shared expert on the clients' validation data. What leaves a client: how many samples it gets right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fedms.federation.client_view import ClientView
from fedms.federation.exchanges.base import Answer, Asked, Exchange, Expected
from fedms.federation.exchanges.checks import check_shapes, check_tokens, check_whole, token_metrics
from fedms.federation.initialization import expert_at_start
from fedms.federation.messages import Task, Update
from fedms.federation.recipe import Recipe
from fedms.federation.secure.encoding import Range, between
from fedms.federation.token_prediction import of_expert


@dataclass(frozen=True)
class Hits(Answer):
    """How many validation samples the shared expert gets right; of texts, how likely their tokens are."""

    correct: float
    """A number of samples, or a log-likelihood"""
    tokens: int | None = None
    """Of which this is the log-likelihood"""

    def metrics(self) -> dict[str, Any]:
        """The numbers."""
        return token_metrics(self.correct, self.tokens) if self.tokens else {"correct": self.correct}

    @classmethod
    def of(cls, update: Update) -> Self:
        """What an update says."""
        said = update.metrics
        if "tokens" in said:
            return cls(int(update.weight), float(said["log_likelihood"]), int(said["tokens"]))
        return cls(int(update.weight), int(said["correct"]))


class EvaluationExchange(Exchange[Asked, Hits, float]):
    """The validation score of what is shared."""

    kind = "evaluate"
    split = "validation"
    asked = Asked
    answered = Hits

    def answer(self, view: ClientView, asked: Asked) -> Hits:
        """Hits of the shared expert on the client's validation data."""
        return shared_hits(view)

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """No more hits than samples."""
        check_shapes(update.arrays, {})
        check_hits(update, expected)

    def ranges(self, task: Task, expected: Expected) -> dict[str, Range]:
        """Hits."""
        return {"correct": between((), 0, expected.declared["validation"], whole=True)}

    def addends(self, update: Update, expected: Expected) -> dict[str, Tensor]:
        """Hits."""
        return {"correct": torch.tensor(update.metrics["correct"])}

    def summed(self, totals: Mapping[str, Tensor], parts: Mapping[str, Sequence[Expected]]) -> Update:
        """All clients' hits."""
        return replace(super().summed({}, parts), metrics={"correct": int(totals["correct"])})

    def combine(self, answers: Sequence[Hits], recipe: Recipe) -> float:
        """The score of all clients' hits."""
        return score(answers)


def shared_hits(view: ClientView) -> Hits:
    """Hits of the shared expert that the task brought, on the client's validation data."""
    samples = view.samples("validation")
    expert = expert_at_start(view, view.recipe.stages[view.version[0]])
    if view.recipe.of_text:
        outputs = of_expert(expert, view.runner, samples, view.boundary)
        return Hits(len(samples), outputs.log_likelihood(0.0), outputs.tokens)
    logits = view.runner.outputs(expert, samples, view.boundary).logits
    assert logits is not None
    objective = view.recipe.objective
    targets = objective.targets(samples, np.arange(len(samples)))
    return Hits(len(samples), int(objective.score(logits, targets)))


def check_hits(update: Update, expected: Expected) -> None:
    """Raise RefusalError where there are more hits than samples."""
    if expected.recipe.of_text:
        return check_tokens(update.metrics, expected.declared["validation"])
    check_whole(update.metrics.get("correct"), "correct", most=expected.declared["validation"])


def score(hits: Sequence[Hits]) -> float:
    """Accuracy over all clients' validation samples; of texts, mean log p over their tokens."""
    scored = sum(each.samples if each.tokens is None else each.tokens for each in hits)
    return sum(each.correct for each in hits) / scored
