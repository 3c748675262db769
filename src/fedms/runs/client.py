"""One client of a finished run, on new input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedms.core.errors import ConfigError, FedmsError
from fedms.data.federated import Samples
from fedms.data.sources import Dataset
from fedms.federation.evaluation import Evaluation, check_labels, evaluate
from fedms.federation.identity import ModelIdentity
from fedms.federation.personal_model import PersonalModel
from fedms.federation.prediction import ClientOutputs, MixtureOutputs, judge, scale_at
from fedms.federation.recipe import recipe_for
from fedms.model.backbone import Backbone
from fedms.runs.backbones import SharedBackbone
from fedms.runs.inputs import Input, Pictures, each_input
from fedms.training.ambient import own_torch_state
from fedms.training.inputs import inputs_for
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner

CHUNK = 256
"""Inputs that are read and classified at a time, so that memory does not grow with their number."""
MEMORY = 512 * 2**20
"""Bytes for hidden states below the experts, which both experts read; beyond it each computes its own."""


@dataclass(frozen=True)
class Prediction:
    """A client's answer to one input."""

    label: str
    """The most probable class."""
    probability: float
    """The probability of that class."""
    probabilities: dict[str, float]
    """The probability of every class, the highest first."""
    local_weight: float | None
    """g_L, the weight of the local expert; None if the method mixes no experts."""
    global_weight: float | None
    """g_G = 1 - g_L"""


@dataclass(frozen=True)
class Explanation:
    """Why a client answers as it does to one input."""

    prediction: Prediction
    prior: float
    """How often the client meets its own kind of data, as it was assumed."""
    evidence: float | None
    """log r + delta, in nats; above 0 for what looks like the client's own data. None without such a gate."""
    evidence_scale: float | None
    """The factor of the evidence at this prior, which validation chose."""
    global_probabilities: dict[str, float] | None
    """What the global expert alone says, the highest first; None if the method mixes no experts' outputs."""
    local_probabilities: dict[str, float] | None
    """The same of the local expert."""


class Client:
    """One client's finished model. Threads may share it, and clients of the same model share one backbone.

    Attributes:
        name: the client.
        classes: names of the classes, in the order of the heads' rows.
        kind: `text` or `image`, what it reads.
        prior: how often the client meets its own kind of data, unless `predict` gets another prior.
        personal: its experts and its gate.
        boundary: the lowest block that carries a pair.
        hub_name: the frozen model's name on the hub; None if the run had a folder of its own.
        figures: its accuracies and number of samples, as the run's result.json has them.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        personal: PersonalModel,
        shared: SharedBackbone,
        prior: float,
        boundary: int,
        hub_name: str | None = None,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.personal = personal
        self.prior = prior
        self.boundary = boundary
        self.hub_name = hub_name
        self.figures = figures or {}
        self._shared = shared

    @property
    def backbone(self) -> Backbone:
        return self._shared.backbone

    @property
    def identity(self) -> ModelIdentity:
        """The fingerprint of the frozen model."""
        return self._shared.identity

    @property
    def kind(self) -> Literal["text", "image"]:
        return self.backbone.kind

    def predict(self, inputs: Iterable[Input], prior: float | None = None) -> list[Prediction]:
        """Classify texts, or images (files or decoded), with the code that the experiment was tested with.

        Args:
            inputs: the samples, in a list or any other iterable; results come in their order.
            prior: how often this client meets its own kind of data, from 0 (the global expert alone) to 1
                (the local one); default: as the run had it.

        Raises:
            ConfigError: a prior outside [0, 1], or for a method that has none.
            FedmsError: an input that the model does not read, or an image that cannot be decoded.
            TypeError: one input in place of several.
        """
        return [
            self._prediction(row, weight)
            for rows, weights in self._answers(inputs, prior)
            for row, weight in zip(rows, weights, strict=True)
        ]

    def predict_proba(self, inputs: Iterable[Input], prior: float | None = None) -> np.ndarray:
        """The probability of every class, float32 [n, C]; columns are in the order of `classes`.

        Arguments and errors are those of `predict`.
        """
        found = [rows.exp().numpy() for rows, _ in self._answers(inputs, prior)]
        return np.concatenate([np.empty((0, len(self.classes)), np.float32), *found])

    def generate(self, prompts: Iterable[str], prior: float | None = None, **options: Any) -> list[Any]:
        """A text for each prompt: of a run of `task: text` alone (`fedms.runs.text_client`).

        Raises:
            ConfigError: this client's model predicts classes.
        """
        raise ConfigError("this client's model predicts classes: only one of task: text generates")

    def explain(self, inputs: Iterable[Input], prior: float | None = None) -> list[Explanation]:
        """The predictions with the gate's evidence and what each expert says alone.

        Arguments and errors are those of `predict`.
        """
        prior = self._checked_prior(prior)
        return [
            explanation
            for outputs, count in self._outputs(inputs)
            for explanation in self._explained(outputs, prior, count)
        ]

    def evaluate(
        self, inputs: Iterable[Input], labels: Iterable[object], prior: float | None = None
    ) -> Evaluation:
        """Compare the predictions with labels, which are names of classes.

        The other arguments and errors are those of `predict`.

        Raises:
            FedmsError: a label is no class of this model, or there are not as many labels as inputs, or none.
        """
        checked = check_labels(self.classes, labels)
        found = self.predict(inputs, prior)
        answers, probabilities = [each.label for each in found], [each.probability for each in found]
        return evaluate(self.classes, checked, answers, probabilities)

    @own_torch_state()
    def _explained(self, outputs: ClientOutputs, prior: float, count: int) -> list[Explanation]:
        """The explanations of `count` inputs."""
        rows, weights = _answer(outputs, prior, count)
        answers = [self._prediction(row, weight) for row, weight in zip(rows, weights, strict=True)]
        if not isinstance(outputs, MixtureOutputs):
            return [Explanation(answer, prior, None, None, None, None) for answer in answers]
        evidence: list[float | None] = [None] * count
        scale = None
        if outputs.evidence is not None:
            evidence, scale = outputs.evidence.tolist(), scale_at(outputs.scales, prior)
        everyone, own = outputs.alone()
        return [
            Explanation(answer, prior, said, scale, self._by_class(everyone[at]), self._by_class(own[at]))
            for at, (answer, said) in enumerate(zip(answers, evidence, strict=True))
        ]

    def _answers(
        self, inputs: Iterable[Input], prior: float | None
    ) -> Iterator[tuple[Tensor, list[float | None]]]:
        """Log-probabilities [n, C] and local weights [n] of `CHUNK` inputs at a time."""
        prior = self._checked_prior(prior)
        for outputs, count in self._outputs(inputs):
            with own_torch_state():
                answer = _answer(outputs, prior, count)
            yield answer

    def _outputs(self, inputs: Iterable[Input]) -> Iterator[tuple[ClientOutputs, int]]:
        """What the client's parts say of `CHUNK` inputs at a time, and how many these are."""
        waiting, done = each_input(inputs), 0
        while chunk := list(islice(waiting, CHUNK)):
            yield self.judge(chunk, done), len(chunk)
            done += len(chunk)

    def judge(self, inputs: Sequence[Input], before: int = 0) -> ClientOutputs:
        """The outputs of the client's parts; predictions at any prior follow from them without another pass.

        All inputs are in memory at once. `before` counts the inputs that came before these, for messages.
        """
        checked = [self._checked_input(each, number) for number, each in enumerate(inputs, before + 1)]
        none = np.zeros(len(checked), dtype=np.int64)
        given: Sequence[Any] = Pictures(checked, before) if self.kind == "image" else checked
        dataset = Dataset(self.kind, given, none, self.classes, {}, None)
        with self._shared.exclusive() as backbone:
            config = self.personal.config
            model_inputs = inputs_for(dataset, backbone, config.model, config.data.around)
            # the cache needs a folder, but with a budget of 0 on disk it writes nothing there
            cache = PrefixCache(backbone, model_inputs, MEMORY, disk=0, folder=Path())
            samples = Samples("new", np.arange(len(checked)), torch.from_numpy(none))
            return judge(self.personal, Runner(backbone, cache), samples, self.boundary)

    @own_torch_state()
    def fits(self) -> bool:
        """Whether the arrays fit each other and the backbone: one sample gets a prediction."""
        sample: Input = "a" if self.kind == "text" else Image.new("RGB", (64, 64))
        if not (0 <= self.prior <= 1 and 0 <= self.boundary <= self.backbone.depth):
            return False
        try:
            found = self.judge([sample]).log_probabilities(self.prior)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError):
            return False  # what torch and dicts raise for arrays of other names or shapes
        return found.shape == (1, len(self.classes)) and bool(found.exp().sum().isclose(torch.ones(())))

    def _checked_prior(self, prior: float | None) -> float:
        if prior is None:
            return self.prior
        recipe = recipe_for(self.personal.config, self.personal.method)
        if not recipe.has_frontier:
            raise ConfigError(
                f"prior: has no meaning for method {recipe.method.name}, "
                "whose predictions do not move with it"
            )
        if not isinstance(prior, int | float | np.number) or not 0 <= prior <= 1:
            raise ConfigError(f"prior: must be from 0 to 1, not {prior}")
        return float(prior)

    def _checked_input(self, given: object, number: int) -> Input:
        """The input, if the model reads it; FedmsError names its number, counted from 1."""
        if self.kind == "image" and isinstance(given, str | Path | Image.Image):
            return given
        if self.kind == "image" or not isinstance(given, str):
            raise FedmsError(f"input {number}: the model reads {self.kind}s, not {type(given).__name__}")
        if given.encode(errors="replace").decode() != given:
            raise FedmsError(f"input {number}: holds half a character (a lone surrogate), which is no text")
        return str(given)  # NumPy has a string type of its own

    def _prediction(self, log_probabilities: Tensor, weight: float | None) -> Prediction:
        probabilities = self._by_class(log_probabilities)
        label, probability = next(iter(probabilities.items()))
        return Prediction(label, probability, probabilities, weight, None if weight is None else 1 - weight)

    def _by_class(self, log_probabilities: Tensor) -> dict[str, float]:
        """The probability of every class, the highest first."""
        # sorted before exp, which can round different values to equal ones; of equal values the first wins
        order = log_probabilities.argsort(descending=True, stable=True).tolist()
        values = log_probabilities.exp().tolist()
        return {self.classes[index]: values[index] for index in order}


def _answer(outputs: ClientOutputs, prior: float, count: int) -> tuple[Tensor, list[float | None]]:
    """Log-probabilities [n, C] and local weights [n]."""
    weight = outputs.local_weight(prior)
    return outputs.log_probabilities(prior), [None] * count if weight is None else weight.tolist()
