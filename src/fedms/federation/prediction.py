"""How a client predicts: one predictor a way, and what each says of samples.

A predictor runs a client's parts over samples once. Its outputs give predictions at any prior without another
pass. A new way to predict is one class here, or in a plug-in, and its name in a method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core.errors import ConfigError
from fedms.data.federated import Samples
from fedms.federation.method import PREDICTIONS
from fedms.federation.personal_model import UNSCALED, PersonalModel
from fedms.model import gate as gates
from fedms.model.arrays import prefixed
from fedms.model.discriminant import label_shift, mixed_prior
from fedms.model.expert import Expert
from fedms.training.runner import Runner

PRIORS = tuple(step / 10 for step in range(11))
"""Where the frontier is measured."""
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
"""Candidates for the scale of the gate's evidence. Validation likelihood picks one for each prior between 0
and 1."""
INTERPOLATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidates for how far local experts go from their start (0) to where training took them (1)."""

ExpertName = Literal["global", "local"]


def scale_at(scales: Sequence[float], prior: float) -> float:
    """The scale at any prior, interpolated from those at the priors between 0 and 1 of `PRIORS`."""
    return float(np.interp(prior, PRIORS[1:-1], scales))


# outputs


class ClientOutputs(ABC):
    """What a client's parts say of n samples."""

    @abstractmethod
    def log_probabilities(self, prior: float) -> Tensor:
        """[n, C], for a client that meets its own kind of data with this probability."""

    def local_weight(self, prior: float) -> Tensor | None:
        """g_L [n], the weight of the local expert; None where nothing is mixed."""
        return None

    def alone(self) -> tuple[Tensor, Tensor] | None:
        """Log probabilities [n, C] of the global and of the local expert; None where no two are mixed."""
        return None

    def global_share(self, prior: float) -> float | None:
        """Mean weight of the global expert; None where nothing is mixed."""
        weight = self.local_weight(prior)
        return None if weight is None else 1 - float(weight.mean())

    def accuracy(self, labels: Tensor, prior: float) -> float:
        """Share of the samples whose likeliest class is their label [n]."""
        return float((self.log_probabilities(prior).argmax(1) == labels).float().mean())


@dataclass(frozen=True)
class LabelPrior:
    """A client's label prior on the logits: it moves from everyone's to the client's own with the prior."""

    counts: Tensor
    """The client's label counts, [C]"""
    everyone: Tensor
    """Everyone's label prior, [C]"""
    included: bool
    """Whether the logits have everyone's label prior in them already."""

    def shift(self, prior: float) -> Tensor:
        """What the logits get added, [C]."""
        if self.included:
            return label_shift(self.counts, self.everyone, prior)
        return mixed_prior(self.counts, self.everyone, prior).log()


@dataclass(frozen=True)
class ExpertOutputs(ClientOutputs):
    """One set of logits, with a label prior or without."""

    logits: Tensor
    """[n, C]"""
    label_prior: LabelPrior | None = None

    def log_probabilities(self, prior: float) -> Tensor:
        """[n, C]"""
        logits = self.logits if self.label_prior is None else self.logits + self.label_prior.shift(prior)
        return F.log_softmax(logits, dim=1)


@dataclass(frozen=True)
class BlendOutputs(ExpertOutputs):
    """Logits of two experts that are blended within every layer. No prior moves the weight."""

    weight: Tensor = field(kw_only=True)
    """g_L, [n]"""

    def local_weight(self, prior: float) -> Tensor:
        """g_L, [n]"""
        return self.weight


@dataclass(frozen=True)
class MixtureOutputs(ClientOutputs):
    """Logits of two experts, and the evidence that weighs them."""

    global_logits: Tensor
    """[n, C]"""
    local_logits: Tensor
    """[n, C]"""
    mix_on: str
    """What is mixed: `probabilities` or `logits`."""
    evidence: Tensor | None = None
    """log r + delta, [n]; None where the weight is the prior for every sample"""
    scales: Sequence[float] = UNSCALED
    """How far the evidence is trusted, at each prior between 0 and 1"""

    def local_weight(self, prior: float) -> Tensor:
        """g_L, [n]"""
        if self.evidence is None:
            return torch.full((len(self.local_logits),), prior)
        return gates.local_weight(scale_at(self.scales, prior) * self.evidence, prior)

    def log_probabilities(self, prior: float) -> Tensor:
        """[n, C]"""
        return gates.mix(self.global_logits, self.local_logits, self.local_weight(prior), self.mix_on)

    def alone(self) -> tuple[Tensor, Tensor]:
        """[n, C] of the global and of the local expert."""
        return F.log_softmax(self.global_logits, dim=1), F.log_softmax(self.local_logits, dim=1)


# predictors


class Predictor(ABC):
    """A way to predict.

    Attributes:
        reads_experts: whether an expert predicts, not the discriminant of the sums.
        moves_with_prior: whether predictions move with the prior, label priors apart.
        mixes: whether two experts are weighed against each other, sample by sample.
        compares_samples: whether new samples are compared to some of the client's own.
        exports: the experts that predict, which an export writes.
        no_export: why its experts cannot be exported as adapters; None where they can.
    """

    reads_experts: ClassVar[bool] = True
    moves_with_prior: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    compares_samples: ClassVar[bool] = False
    exports: ClassVar[tuple[ExpertName, ...]] = ()
    no_export: ClassVar[str | None] = None

    @abstractmethod
    def judge(self, model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> ClientOutputs:
        """Run whatever predicts over the samples, from block `boundary` up."""


class GlobalPredictor(Predictor):
    """The global expert predicts for everybody."""

    exports = ("global",)

    def judge(self, model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> ExpertOutputs:
        """Logits of the global expert."""
        return ExpertOutputs(
            _global_logits(model, runner, samples, boundary), _label_prior(model, included=True)
        )


class LocalPredictor(Predictor):
    """Each client's local expert predicts."""

    exports = ("local",)

    def judge(self, model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> ExpertOutputs:
        """Logits of the local expert."""
        return ExpertOutputs(
            _local_logits(model, runner, samples, boundary), _label_prior(model, included=False)
        )


class MixturePredictor(Predictor):
    """Global and local expert, mixed in their outputs by the gate that the method names."""

    moves_with_prior = True
    mixes = True
    exports = ("global", "local")

    def judge(self, model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> MixtureOutputs:
        """Logits of both experts, and the gate's evidence."""
        everyone = _global_logits(model, runner, samples, boundary)
        own = _local_logits(model, runner, samples, boundary)
        on, gate = model.config.mixture.on, model.method.gate
        if gate == "constant":
            return MixtureOutputs(everyone, own, on)
        if gate == "counts":
            return MixtureOutputs(
                everyone, own, on, gates.count_evidence(everyone, model.arrays["own.counts"])
            )
        x = model.gate_features(runner, samples, boundary)
        evidence = model.new_evidence
        log_ratio = evidence.log_ratio(x) if evidence else torch.zeros(len(x))
        if model.network_kept:
            log_ratio = log_ratio + gates.delta(model.arrays, x).detach()
        return MixtureOutputs(everyone, own, on, log_ratio, model.evidence_scales)


class BlendPredictor(Predictor):
    """Both experts' pairs act in every layer, weighed by how like a sample is to some of the client's own.

    FedDPA, arXiv 2403.19211.
    """

    mixes = True
    compares_samples = True
    no_export = "weighs two experts' pairs against each other within every layer"

    def judge(self, model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> BlendOutputs:
        """Logits of the blend."""
        weight = self.likeness(model, runner, samples, boundary)
        logits = runner.outputs(self._blend(model, weight), samples, boundary).logits
        assert logits is not None
        return BlendOutputs(logits, _label_prior(model, included=False), weight=weight)

    def likeness(self, model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> Tensor:
        """Mean cosine of each sample's frozen feature to some of the client's own, at least 0, [n]."""
        x = runner.frozen_outputs("backbone", None, samples, boundary).features
        cosine = F.normalize(x, dim=1) @ F.normalize(model.arrays["own.references"], dim=1).T
        return cosine.mean(1).clamp(0, 1)

    def _blend(self, model: PersonalModel, weight: Tensor) -> Expert:
        """Both experts as one, whose pairs and heads are weighed sample by sample."""
        local, everyone = model.local_expert, model.global_expert
        assert local is not None and everyone is not None
        return Expert(local.arrays | prefixed(everyone.arrays, "beside."), local.scale, weight)


class DiscriminantPredictor(Predictor):
    """The linear discriminant of the federation's sums predicts; nothing is trained."""

    reads_experts = False

    def judge(self, model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> ExpertOutputs:
        """Scores of the discriminant, without any label prior."""
        x = runner.frozen_outputs("backbone", None, samples, boundary).features
        return ExpertOutputs(model.discriminant.scores(x), _label_prior(model, included=False))


def _global_logits(model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> Tensor:
    logits = runner.frozen_outputs("global", model.global_expert, samples, boundary).logits
    assert logits is not None
    return logits


def _local_logits(model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> Tensor:
    logits = runner.outputs(model.local_expert, samples, boundary, model.local_head_alone).logits
    assert logits is not None
    return logits


def _label_prior(model: PersonalModel, included: bool) -> LabelPrior | None:
    if not model.method.label_prior:
        return None
    return LabelPrior(model.arrays["own.counts"].float(), model.everyone_prior(), included)


PREDICTORS: dict[str, Predictor] = {
    "global": GlobalPredictor(),
    "local": LocalPredictor(),
    "mixture": MixturePredictor(),
    "blend": BlendPredictor(),
    "statistics": DiscriminantPredictor(),
}
"""By the name that a method's `predicts` says."""


def register_predictor(name: str, predictor: Predictor) -> None:
    """Let a method name this predictor.

    Raises:
        ConfigError: the name is taken.
    """
    PREDICTIONS.add(name)
    PREDICTORS[name] = predictor


def find_predictor(name: str) -> Predictor:
    """The predictor of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PREDICTORS:
        raise ConfigError(f"predictor: {name!r} is not known; allowed: {', '.join(PREDICTORS)}")
    return PREDICTORS[name]


def judge(model: PersonalModel, runner: Runner, samples: Samples, boundary: int) -> ClientOutputs:
    """What a client's model says of samples, by the predictor of its method."""
    return find_predictor(model.method.predicts).judge(model, runner, samples, boundary)
