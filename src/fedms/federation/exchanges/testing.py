"""The finished personal models on own and everyone's data.

What leaves a client: accuracies (by prior where predictions move with it), the gate's mean weight, its number
of training samples, and the hits of the untrained model. The finished model stays in its folder, and so do
its predictions for the client's own test samples with their figures.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch.nn import functional as F

from fedms.core.files import write_arrays, write_bytes, write_json
from fedms.data.federated import Samples
from fedms.federation.assembly import finished_model
from fedms.federation.client_view import ClientView
from fedms.federation.evaluation import evaluate
from fedms.federation.exchanges.base import Answer, Asked, Exchange, Expected
from fedms.federation.exchanges.checks import (
    RefusalError,
    check_log_likelihood,
    check_number,
    check_shapes,
    check_share,
    check_whole,
)
from fedms.federation.messages import Task, Update
from fedms.federation.personal_model import UNSCALED, PersonalModel
from fedms.federation.prediction import PRIORS, ClientOutputs
from fedms.federation.recipe import Recipe
from fedms.federation.token_prediction import judge_tokens, of_expert

BASE_MEANS = "base.means"
"""The federated class means of frozen features, which judge pictures before any training."""

JUDGED = ("validation_own", "validation_everyone", "test_own", "test_everyone")
"""The data that finished models are judged on: split and whose."""


PREDICTIONS = (
    "row",
    "label",
    "predicted",
    "probability",
    "local_weight",
    "global_predicted",
    "local_predicted",
    "disagreement",
)
"""Columns of predictions.csv. The last four are empty where no two experts are mixed. `disagreement` is the
total variation between the probabilities of both experts, from 0 to 1."""


@dataclass(frozen=True)
class FinalTestAsked(Asked):
    """What all clients' validation data have chosen."""

    prior: float
    interpolation: float
    evidence_scales: list[float]


@dataclass(frozen=True)
class Judgement:
    """A personal model on some samples."""

    accuracy: float
    frontier: tuple[float, ...] | None
    """Accuracy at each of `PRIORS`; None where predictions do not move with the prior."""
    global_share: float | None
    """Mean weight of the global expert; None where nothing is mixed."""
    nll: float | None = None
    """Of texts, mean -log p of a token, in nats; then accuracies are of tokens."""
    nll_frontier: tuple[float, ...] | None = None
    """The same at each of `PRIORS`."""


@dataclass(frozen=True)
class FinalTestAnswer(Answer):
    """A finished personal model, judged."""

    client: str
    judged: dict[str, Judgement]
    """By split and data: `test_own`, `test_everyone`, and the same of validation where that is asked for."""
    network_kept: bool
    """Whether the gate's network speaks."""
    evidence_scales: tuple[float, ...]
    base_correct: int
    """Test samples that the untrained model gets right"""
    base_total: int
    shared_correct: int | None
    """Test samples that the global expert gets right, which everybody holds; None where there is none"""
    base_nll: float | None = None
    shared_nll: float | None = None
    """Of texts, mean -log p of a test token under the untrained model and the global expert; then all that is
    right is counted in tokens"""
    epsilon: float | None = None
    """What the client's ledger says that it has spent, under differential privacy"""

    def metrics(self) -> dict[str, Any]:
        """All of it, flat."""
        said: dict[str, Any] = {
            "samples": self.samples,
            "network_kept": self.network_kept,
            "evidence_scales": list(self.evidence_scales),
        }
        for name, judged in self.judged.items():
            said[name] = judged.accuracy
            if judged.frontier is not None:
                said[f"{name}_frontier"] = list(judged.frontier)
            said[f"{name}_global_share"] = judged.global_share
            if judged.nll is not None:
                said[f"{name}_nll"] = judged.nll
            if judged.nll_frontier is not None:
                said[f"{name}_nll_frontier"] = list(judged.nll_frontier)
        said |= {"base_correct": self.base_correct, "base_total": self.base_total}
        if self.base_nll is not None:
            said |= {"base_nll": self.base_nll, "shared_nll": self.shared_nll}
        return said | {"shared_correct": self.shared_correct}

    @classmethod
    def of(cls, update: Update) -> Self:
        """What an update says."""
        said, judged = update.metrics, {}
        for name in JUDGED:
            if name in said:
                frontier = said.get(f"{name}_frontier")
                points = None if frontier is None else tuple(frontier)
                share, nll = said.get(f"{name}_global_share"), said.get(f"{name}_nll")
                losses = said.get(f"{name}_nll_frontier")
                judged[name] = Judgement(
                    said[name], points, share, nll, None if losses is None else tuple(losses)
                )
        scales = tuple(said.get("evidence_scales", UNSCALED))
        hits = (
            *(said[key] for key in ("base_correct", "base_total", "shared_correct")),
            *(said.get(key) for key in ("base_nll", "shared_nll", "epsilon")),
        )
        return cls(said["samples"], update.client, judged, said["network_kept"], scales, *hits)


class FinalTestExchange(Exchange[FinalTestAsked, FinalTestAnswer, tuple[FinalTestAnswer, ...]]):
    """The test."""

    kind = "test"
    split = "train"
    asked = FinalTestAsked
    answered = FinalTestAnswer

    def answer(self, view: ClientView, asked: FinalTestAsked) -> FinalTestAnswer:
        """Judge the finished model, and keep it."""
        model = finished_model(view, asked.interpolation, asked.evidence_scales)
        facts = {**model.facts(), "client": view.client, "prior": asked.prior, "boundary": view.boundary}
        write_arrays(view.folder.path / "model.safetensors", model.arrays, facts)
        judged: dict[str, Judgement] = {}
        for split in view.config.evaluation.splits:
            for whose, samples in (("own", view.samples(split)), ("everyone", view.everyone.get(split))):
                if samples is None:
                    continue
                if view.recipe.of_text:
                    judged[f"{split}_{whose}"] = _judge_tokens(view, model, samples, asked.prior)
                    continue
                outputs = view.recipe.predictor.judge(model, view.runner, samples, view.boundary)
                judged[f"{split}_{whose}"] = _judgement(view.recipe, outputs, samples, asked.prior)
                if (split, whose) == ("test", "own"):
                    _keep_predictions(view, outputs, samples, asked.prior)
        hits = _token_hits(view, model) if view.recipe.of_text else (*_untrained(view), _shared(view, model))
        count = len(view.samples("train"))
        return FinalTestAnswer(count, view.client, judged, model.network_kept, model.evidence_scales, *hits)

    def check(self, task: Task, update: Update, expected: Expected) -> None:
        """Accuracies and shares between 0 and 1, and counts within what was declared."""
        check_shapes(update.arrays, {})
        said, recipe = update.metrics, expected.recipe
        expected.samples("train", said.get("samples"))
        total = check_whole(said.get("base_total"), "base_total", least=1)
        check_whole(said.get("base_correct"), "base_correct", most=total)
        if (shared := said.get("shared_correct")) is not None or recipe.has_global:
            check_whole(shared, "shared_correct", most=total)
        if recipe.private and not check_number(said.get("epsilon"), "epsilon") >= 0:
            raise RefusalError("epsilon is below 0")
        if not isinstance(said.get("network_kept"), bool):
            raise RefusalError("network_kept is not true or false")
        for name in (
            f"{split}_{of}" for split in recipe.config.evaluation.splits for of in ("own", "everyone")
        ):
            if name not in said and name.endswith("everyone"):
                continue  # a site without a public file
            check_share(said.get(name), name)
            if (share := said.get(f"{name}_global_share")) is not None or recipe.predictor.mixes:
                check_share(share, f"{name}_global_share")
            if recipe.of_text:
                _check_losses(said, name, recipe.has_frontier)
            if recipe.has_frontier:
                _check_frontier(said.get(f"{name}_frontier"), f"{name}_frontier")

    def combine(self, answers: Sequence[FinalTestAnswer], recipe: Recipe) -> tuple[FinalTestAnswer, ...]:
        """Every client's, in the order of names."""
        return tuple(answers)


def _judgement(recipe: Recipe, outputs: ClientOutputs, samples: Samples, prior: float) -> Judgement:
    frontier = None
    if recipe.has_frontier:
        frontier = tuple(outputs.accuracy(samples.labels, at) for at in PRIORS)
    return Judgement(outputs.accuracy(samples.labels, prior), frontier, outputs.global_share(prior))


def _keep_predictions(view: ClientView, outputs: ClientOutputs, samples: Samples, prior: float) -> None:
    """Write predictions.csv and metrics.json into the client's folder, where they stay."""
    names, weight = view.data.class_names, outputs.local_weight(prior)
    log_probabilities = outputs.log_probabilities(prior)
    found = log_probabilities.argmax(1, keepdim=True)
    labels = [names[label] for label in samples.labels.tolist()]
    answers = [names[place] for place in found.flatten().tolist()]
    probabilities = log_probabilities.gather(1, found).exp().flatten().tolist()
    weights = [""] * len(samples) if weight is None else weight.tolist()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PREDICTIONS)
    columns = (samples.rows.tolist(), labels, answers, probabilities, weights)
    writer.writerows(zip(*columns, *_alone(names, outputs, len(samples)), strict=True))
    write_bytes(view.folder.path / "predictions.csv", text.getvalue().encode())
    figures = asdict(evaluate(names, labels, answers, probabilities))
    write_json(view.folder.path / "metrics.json", {"client": view.client, "prior": prior, **figures})


def _alone(names: Sequence[str], outputs: ClientOutputs, count: int) -> Iterable[Sequence[Any]]:
    """What each expert alone says of every sample, and how far apart they are."""
    if (found := outputs.alone()) is None:
        return [[""] * count] * 3
    answers = [[names[place] for place in each.argmax(1).tolist()] for each in found]
    apart = (found[0].exp() - found[1].exp()).abs().sum(1) / 2
    return [*answers, apart.tolist()]


def _judge_tokens(view: ClientView, model: PersonalModel, samples: Samples, prior: float) -> Judgement:
    outputs = judge_tokens(model, view.runner, samples, view.boundary)
    accuracies = losses = None
    if view.recipe.has_frontier:
        accuracies = tuple(outputs.right(at) / outputs.tokens for at in PRIORS)
        losses = tuple(outputs.loss(at) for at in PRIORS)
    share = outputs.global_share(prior) if view.recipe.predictor.mixes else None
    return Judgement(outputs.right(prior) / outputs.tokens, accuracies, share, outputs.loss(prior), losses)


def _token_hits(view: ClientView, model: PersonalModel) -> tuple[Any, ...]:
    """What the untrained model and the global expert get right of the test tokens, and their losses."""
    samples = view.samples("test")
    base = of_expert(None, view.runner, samples, view.boundary, "backbone")
    untrained, loss = (base.right(0.0), base.tokens), base.loss(0.0)
    if model.global_expert is None:
        return (*untrained, None, loss, None)
    shared = of_expert(model.global_expert, view.runner, samples, view.boundary, "global")
    return (*untrained, shared.right(0.0), loss, shared.loss(0.0))


def _shared(view: ClientView, model: PersonalModel) -> int | None:
    """Test samples that the global expert gets right, if there is one."""
    if model.global_expert is None:
        return None
    samples = view.samples("test")
    logits = view.runner.frozen_outputs("global", model.global_expert, samples, view.boundary).logits
    assert logits is not None
    return int((logits.argmax(1) == samples.labels).sum())


def _untrained(view: ClientView) -> tuple[int, int]:
    """Test samples that the frozen model gets right by the nearest class name or class mean, and how many
    there are.
    """
    samples = view.samples("test")
    x = view.runner.frozen_outputs("backbone", None, samples, view.boundary).features
    references = view.class_embeddings if view.backbone.kind == "text" else view.arrays[BASE_MEANS]
    assert references is not None
    nearest = (F.normalize(x, dim=1) @ F.normalize(references, dim=1).T).argmax(1)
    return int((nearest == samples.labels).sum()), len(samples)


def _check_frontier(value: Any, name: str) -> None:
    if not isinstance(value, list) or len(value) != len(PRIORS):
        raise RefusalError(f"{name} is not {len(PRIORS)} accuracies")
    for accuracy in value:
        check_share(accuracy, name)


def _check_losses(said: Mapping[str, Any], name: str, has_frontier: bool) -> None:
    losses = [said.get(f"{name}_nll")]
    if has_frontier:
        points = said.get(f"{name}_nll_frontier")
        if not isinstance(points, list) or len(points) != len(PRIORS):
            raise RefusalError(f"{name}_nll_frontier is not {len(PRIORS)} losses")
        losses += points
    for loss in losses:
        check_log_likelihood(-check_number(loss, f"{name}_nll"), f"-{name}_nll")
