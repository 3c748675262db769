"""A client's gate in a round of local training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core import seeds
from fedms.data.federated import Samples
from fedms.federation.assembly import fresh_client_gate, model_so_far, only, own_evidence
from fedms.federation.client_view import ClientView
from fedms.federation.method import Stage
from fedms.model.arrays import Arrays, moved
from fedms.model.gate import delta, local_weight, mix
from fedms.training.expert_training import LossFunction
from fedms.training.gate_training import train_gate


def start_gate(
    view: ClientView, stage: Stage, samples: Samples
) -> tuple[Arrays, list[tuple[Tensor, float]], LossFunction | None]:
    """The gate's arrays.

    With the objective `likelihood`, also what trains jointly, and the mixture's loss.
    """
    if "gate" not in stage.trains:
        return {}, [], None
    config = view.config.gate
    gate = fresh_client_gate(view) | only(view.kept, "gate.") | only(view.arrays, "gate.")
    if config.objective != "likelihood":
        return gate, [], None
    model, device = model_so_far(view), view.backbone.device
    gate = {name: array.to(device, copy=True).requires_grad_(True) for name, array in gate.items()}
    outputs = view.runner.frozen_outputs("global", model.global_expert, samples, view.boundary)
    assert outputs.logits is not None
    x, everyone = (
        model.gate_features(view.runner, samples, view.boundary).to(device),
        outputs.logits.to(device),
    )
    labels, prior = samples.labels.to(device), _inner_prior(view)

    def loss(picks: np.ndarray, logits: Tensor) -> Tensor:
        at = moved(torch.from_numpy(picks), device)
        weight = local_weight(delta(gate, x[at]), prior)
        return F.nll_loss(mix(everyone[at], logits, weight, view.config.mixture.on), labels[at])

    return gate, [(array, config.learning_rate) for array in gate.values()], loss


def _inner_prior(view: ClientView) -> float:
    """The prior that the gate trains at. At 0 and 1 a gate says nothing, so 1/2 stands in their place."""
    prior = view.config.gate.prior
    return prior if 0 < prior < 1 else 0.5


def continue_gate(view: ClientView, stage: Stage, samples: Samples, gate: Arrays) -> Arrays:
    """The gate, trained in this round to tell own samples from everyone's.

    It reads the client's evidence, which the round's expert is no part of.
    """
    if not view.config.gate.network:
        return gate
    model, x, known = own_evidence(view, samples)
    generator = seeds.torch_generator(view.config.seed, "gate", stage.name, view.version[1], view.client)
    return train_gate(gate, x, known, model.discriminant, model.evidence, view.config.gate, generator)
