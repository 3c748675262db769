"""Local training: an expert by its own loss, the gate by telling own from everyone's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms import config as cfg
from fedms.data.features import Samples
from fedms.data.inputs import batches
from fedms.errors import FedmsError
from fedms.federation.compute import Compute
from fedms.model import gate as gates
from fedms.model.expert import Expert, block_of
from fedms.model.statistics import Discriminant, Evidence, normalise

Loss = Callable[[np.ndarray, Tensor], Tensor]
"""From positions and logits of a batch to its mean loss."""


def train_expert(
    compute: Compute,
    expert: Expert,
    names: Sequence[str],
    samples: Samples,
    boundary: int,
    config: cfg.Training,
    order: np.random.Generator,
    rates: tuple[float, float],
    loss: Loss | None = None,
    also: Sequence[tuple[Tensor, float]] = (),
) -> float:
    """Train these arrays of the expert for `config.epochs` passes with AdamW; return the mean loss of the last pass.

    `rates` are for LoRA and head. `loss` replaces the cross-entropy, and `also` names further leaves with their rates.
    """
    leaves = expert.train(names)
    groups = [{"params": [leaf], "lr": rates[name.startswith("head.")]} for name, leaf in zip(names, leaves, strict=True)]
    groups += [{"params": [leaf], "lr": rate} for leaf, rate in also]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    trained = sorted({block for name in names if (block := block_of(name)) is not None})
    lengths = compute.cache.inputs.lengths(samples.rows)
    labels = samples.labels.to(compute.backbone.device)
    total = torch.zeros((), device=compute.backbone.device)
    for _ in range(config.epochs):
        total.zero_()
        for picks in batches(lengths, config.batch_size, order):
            logits = expert.logits(compute.feature(expert, samples, boundary, picks, trained))
            value = loss(picks, logits) if loss else F.cross_entropy(logits, labels[picks])
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += value.detach() * len(picks)
    expert.arrays = expert.detached()
    if not math.isfinite(mean := float(total) / len(samples)):
        raise FedmsError("training diverged: the loss is not finite; lower training.learning_rate")
    return mean


def train_gate(
    arrays: dict[str, Tensor],
    own: Tensor,
    own_evidence: Tensor,
    everyone: Discriminant,
    evidence: Evidence | None,
    config: cfg.Gate,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Train adapter and network on own features [n, d] against as many drawn from everyone's statistics.

    Binary cross-entropy of log r + delta: own features say local, drawn ones global. Own evidence must be left-one-out.
    """
    names = (*gates.ADAPTER, *gates.NETWORK)
    leaves = {name: arrays[name].detach().clone().requires_grad_(True) for name in names}
    optimizer = torch.optim.AdamW(leaves.values(), lr=config.learning_rate, weight_decay=1e-2, fused=True)
    for _ in range(config.epochs):
        drawn = normalise(everyone.draw(len(own), generator)[0])  # as long as real features, or length would tell them apart
        x = torch.cat([own, drawn])
        known = torch.cat([own_evidence, evidence.log_ratio(drawn) if evidence else torch.zeros(len(drawn))])
        target = torch.cat([torch.ones(len(own)), torch.zeros(len(drawn))])
        for picks in torch.split(torch.randperm(len(x), generator=generator), 64):
            value = F.binary_cross_entropy_with_logits(known[picks] + gates.delta(leaves, x[picks]), target[picks])
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


@torch.no_grad()
def network_helps(
    arrays: dict[str, Tensor],
    own: Tensor,
    own_evidence: Tensor,
    everyone: Discriminant,
    evidence: Evidence | None,
    generator: torch.Generator,
) -> bool:
    """Whether delta lowers the cross-entropy on validation features and fresh draws, by more than its standard error."""
    drawn = normalise(everyone.draw(len(own), generator)[0])  # as long as real features, or length would tell them apart
    known = torch.cat([own_evidence, evidence.log_ratio(drawn) if evidence else torch.zeros(len(drawn))])
    target = torch.cat([torch.ones(len(own)), torch.zeros(len(drawn))])
    with_network = known + gates.delta(arrays, torch.cat([own, drawn]))
    gain = F.binary_cross_entropy_with_logits(known, target, reduction="none")
    gain = gain - F.binary_cross_entropy_with_logits(with_network, target, reduction="none")
    return len(own) > 1 and float(gain.mean()) > float(gain.std()) / len(gain) ** 0.5
