"""From what a client holds to the model it predicts with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedms.core import seeds
from fedms.data.federated import Samples
from fedms.federation.client_view import ClientView
from fedms.federation.initialization import expert_at_start, local_start
from fedms.federation.personal_model import PersonalModel
from fedms.federation.token_prediction import with_router
from fedms.model.arrays import Arrays, prefixed
from fedms.model.expert import Expert
from fedms.model.gate import fresh_gate
from fedms.model.statistics import FeatureSums
from fedms.training.gate_training import network_helps

REFERENCES = 5
"""Own samples that a new one is compared to, where experts are blended by likeness."""


def model_so_far(view: ClientView, interpolation: float = 1.0) -> PersonalModel:
    """The client's model as it stands, without what it knows of its own data."""
    arrays = received_calibrated(view) | only(view.kept | view.arrays, "gate.")
    if view.recipe.method.gate == "learned" and view.recipe.has_head:
        arrays = fresh_client_gate(view) | arrays
    if view.recipe.has_local:
        [expert] = local_experts(view, interpolation)
        arrays |= prefixed(expert.detached(), "local/")
    return PersonalModel(arrays, view.recipe.method, view.config)


def finished_model(view: ClientView, interpolation: float, scales: Sequence[float]) -> PersonalModel:
    """The client's final model."""
    model = model_so_far(view, interpolation)
    model.evidence_scales = tuple(scales)
    model = with_own_knowledge(view, model)
    if view.recipe.routes_tokens:
        model = with_router(model, view.runner, view.samples("validation"), view.boundary)
    if view.recipe.gate_reads_statistics:
        model.network_kept = _network_helps(view, model)
    return model


def local_experts(view: ClientView, *interpolations: float) -> list[Expert]:
    """The local expert between its start (0) and where training took it (1); WiSE-FT, arXiv 2109.01903."""
    stages = view.recipe.stages
    stage = stages[min(view.version[0], len(stages) - 1)]
    expert = expert_at_start(view, stage)
    start = local_start(view, stage) if {*interpolations} != {1.0} else {}

    def between(step: float) -> Expert:
        moved = {
            name: torch.lerp(start[name].to(array), array, step) for name, array in expert.arrays.items()
        }
        return Expert(moved, expert.scale)

    return [expert if step == 1 else between(step) for step in interpolations]


def with_own_knowledge(view: ClientView, model: PersonalModel) -> PersonalModel:
    """The model with what it needs to know of the client's own training data."""
    own, samples = view.recipe.own_knowledge, view.samples("train")
    found: Arrays = {}
    if own == "sums":
        x = model.gate_features(view.runner, samples, view.boundary)
        sums = FeatureSums.of(x, samples.labels, view.classes)
        found = {"own.counts": sums.counts, "own.sums": sums.sums}
    elif own == "counts":
        found = {"own.counts": torch.bincount(samples.labels, minlength=view.classes)}
    elif own == "references":
        x = view.runner.frozen_outputs("backbone", None, samples, view.boundary).features
        generator = seeds.torch_generator(view.config.seed, "references", view.client)
        found = {"own.references": x[torch.randperm(len(x), generator=generator)[:REFERENCES]]}
    arrays = model.arrays | found
    return PersonalModel(arrays, model.method, model.config, model.network_kept, model.evidence_scales)


def own_evidence(view: ClientView, samples: Samples) -> tuple[PersonalModel, Tensor, Tensor]:
    """The client's model, its gate features [n, d] and their evidence [n], each left out of the sums."""
    model = with_own_knowledge(view, model_so_far(view))
    x = model.gate_features(view.runner, samples, view.boundary)
    evidence = model.evidence
    return model, x, evidence.log_ratio_left_out(x, samples.labels) if evidence else torch.zeros(len(x))


def received_calibrated(view: ClientView) -> Arrays:
    """What the client was sent, with the shrinkage and temperature that the server chose since."""
    received, calibration = dict(view.received), view.situation.calibration
    if calibration is not None and "discriminant.numbers" in received:
        numbers = received["discriminant.numbers"].clone()
        numbers[1:] = torch.tensor(calibration, dtype=numbers.dtype)
        received["discriminant.numbers"] = numbers
    return received


def fresh_client_gate(view: ClientView) -> Arrays:
    """A gate of this client before any training."""
    gate = view.config.gate
    size = view.backbone.feature_size
    return fresh_gate(size, gate.adapter_rank, gate.hidden, view.config.seed, view.client)


def only(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays whose names begin so."""
    return {name: array for name, array in arrays.items() if name.startswith(prefix)}


def _network_helps(view: ClientView, model: PersonalModel) -> bool:
    """Whether validation says that the gate's network helps. Without evidence there is nothing else."""
    evidence = model.evidence
    if evidence is None or not view.config.gate.network:
        return evidence is None
    x = model.gate_features(view.runner, view.samples("validation"), view.boundary)
    generator = seeds.torch_generator(view.config.seed, "gate-validation", view.client)
    return network_helps(model.arrays, x, evidence.log_ratio(x), model.discriminant, evidence, generator)
