"""Local training: an expert by its own loss, the gate by telling own from everyone's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms import config as cfg
from fedms.data.features import Samples
from fedms.data.inputs import batches
from fedms.errors import FedmsError
from fedms.federation.compute import Compute
from fedms.federation.method import Stage
from fedms.model import flops
from fedms.model import gate as gates
from fedms.model.device import moved
from fedms.model.expert import Expert, block_of, group
from fedms.model.statistics import Discriminant, Evidence, normalise

Loss = Callable[[np.ndarray, Tensor], Tensor]
"""From positions and logits of a batch to its mean loss."""

GATE_BATCH, GATE_DECAY = 64, 1e-2
"""Features a step of training the gate, and AdamW's decay there."""
LONGEST_STEP = 7.28
"""A step of AdamW in units of its learning rate, at most: by Cauchy and Schwarz |m| <= (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) sqrt(v),
with b1 = 0.9 and b2 = 0.999, and the correction of its bias only shortens it."""


@dataclass(frozen=True)
class Plan:
    """What a round of training changes, and how."""

    names: Sequence[str]
    """Arrays that train"""
    rates: tuple[float, float]
    """Learning rates of the head and of all else"""
    phases: tuple[tuple[str, ...], ...] = ()
    """Parameter groups between which the round's steps are divided; empty, or with fewer steps than these: all at once"""
    anchor: Mapping[str, Tensor] = field(default_factory=dict)
    """Where a proximal term pulls"""
    proximal: float = 0.0
    """Its weight mu: mu / 2 times the squared distance is added to the loss (FedProx, arXiv 1812.06127)"""
    loss: Loss | None = None
    """In the cross-entropy's place"""
    also: Sequence[tuple[Tensor, float]] = ()
    """Further leaves with their rates"""


def train_expert(
    compute: Compute, expert: Expert, plan: Plan, samples: Samples, boundary: int, config: cfg.Training, order: np.random.Generator
) -> float:
    """Train the expert for `config.epochs` passes with AdamW; return the mean loss of the last pass, its proximal term apart.

    Raises:
        FedmsError: the loss is not finite.
    """
    names, leaves = plan.names, expert.train(plan.names)
    every = [*leaves, *(leaf for leaf, _ in plan.also)]
    optimizer = optimizer_of(plan, leaves, config)
    lengths = compute.cache.inputs.lengths(samples.rows)
    device = compute.backbone.device
    per_epoch = -(-len(samples) // config.batch_size)
    steps = per_epoch * config.epochs
    phases = plan.phases if steps >= len(plan.phases) else ()  # or what comes last would never train
    total = torch.zeros((), device=device)
    trained = reached(names)
    for epoch in range(config.epochs):
        total.zero_()
        for step, picks in enumerate(batches(lengths, config.batch_size, order), epoch * per_epoch):
            if phases:
                phase = phases[step * len(phases) // steps]
                for name, leaf in zip(names, leaves, strict=True):
                    leaf.requires_grad_(group(name) in phase)
                trained = reached([name for name in names if group(name) in phase])
            logits = expert.logits(compute.feature(expert, samples, boundary, picks, trained))
            value = plan.loss(picks, logits) if plan.loss else F.cross_entropy(logits, moved(samples.labels[picks], device))
            total += value.detach() * len(picks)
            if plan.proximal:
                near = [(leaf - plan.anchor[name]).square().sum() for name, leaf in zip(names, leaves, strict=True) if name in plan.anchor]
                value = value + 0.5 * plan.proximal * torch.stack(near).sum()
            for leaf in every:
                leaf.grad = None
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    expert.arrays = expert.detached()
    return checked(float(total) / len(samples))


def optimizer_of(plan: Plan, leaves: Sequence[Tensor], config: cfg.Training) -> torch.optim.Optimizer:
    """AdamW for these leaves, which are in the order of the plan's names."""
    rated = [(leaf, plan.rates[group(name) != "head"]) for name, leaf in zip(plan.names, leaves, strict=True)]
    by_rate: dict[float, list[Tensor]] = defaultdict(list)  # each group of an optimizer's costs a step its own calls
    for leaf, rate in [*rated, *plan.also]:
        by_rate[rate].append(leaf)
    groups = [{"params": each, "lr": rate} for rate, each in by_rate.items()]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def checked(loss: float) -> float:
    """The loss; FedmsError where it is not finite."""
    if not math.isfinite(loss):
        raise FedmsError("training diverged: the loss is not finite; lower training.learning_rate")
    return loss


def rates(stage: Stage, config: cfg.Training) -> tuple[float, float]:
    """Learning rates of the head and of all else."""
    if stage.expert == "local":
        return config.local_learning_rate, config.local_learning_rate
    return config.head_learning_rate, config.learning_rate


def reach(steps: int, rate: float, decay: float, largest: float) -> float:
    """How far AdamW can move a number at most in so many steps, where the largest is so large at the start."""
    far = steps * rate * LONGEST_STEP
    return far + steps * rate * decay * (largest + far)


def reached(names: Sequence[str]) -> list[int]:
    """The blocks that a loss goes back to, to train these arrays; a prompt lies below them all."""
    if "prompt.tokens" in names:
        return [flops.BELOW]
    return sorted({block for name in names if (block := block_of(name)) is not None})


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
    optimizer = torch.optim.AdamW(leaves.values(), lr=config.learning_rate, weight_decay=GATE_DECAY, fused=True)
    for _ in range(config.epochs):
        drawn = normalise(everyone.draw(len(own), generator)[0])  # as long as real features, or length would tell them apart
        x = torch.cat([own, drawn])
        known = torch.cat([own_evidence, evidence.log_ratio(drawn) if evidence else torch.zeros(len(drawn))])
        target = torch.cat([torch.ones(len(own)), torch.zeros(len(drawn))])
        for picks in torch.split(torch.randperm(len(x), generator=generator), GATE_BATCH):
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
