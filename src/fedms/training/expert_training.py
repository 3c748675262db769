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

from fedms.config.sections import TrainingConfig
from fedms.core.errors import FedmsError
from fedms.data.federated import Samples
from fedms.model import flops
from fedms.model.arrays import block_of, group
from fedms.model.expert import Expert
from fedms.training.device import moved
from fedms.training.inputs import batches
from fedms.training.runner import Runner

LossFunction = Callable[[np.ndarray, Tensor], Tensor]
"""From positions and logits of a batch to its mean loss."""

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
    loss: LossFunction | None = None
    """In the cross-entropy's place"""
    also: Sequence[tuple[Tensor, float]] = ()
    """Further leaves with their rates"""


def train_expert(
    runner: Runner,
    expert: Expert,
    plan: Plan,
    samples: Samples,
    boundary: int,
    config: TrainingConfig,
    order: np.random.Generator,
) -> float:
    """Train the expert for `config.epochs` passes with AdamW; return the mean loss of the last pass, its proximal term apart.

    Raises:
        FedmsError: the loss is not finite.
    """
    names, leaves = plan.names, expert.train(plan.names)
    every = [*leaves, *(leaf for leaf, _ in plan.also)]
    optimizer = optimizer_of(plan, leaves, config)
    lengths = runner.cache.inputs.lengths(samples.rows)
    device = runner.backbone.device
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
            logits = expert.logits(runner.feature(expert, samples, boundary, picks, trained))
            value = (
                plan.loss(picks, logits)
                if plan.loss
                else F.cross_entropy(logits, moved(samples.labels[picks], device))
            )
            total += value.detach() * len(picks)
            if plan.proximal:
                near = [
                    (leaf - plan.anchor[name]).square().sum()
                    for name, leaf in zip(names, leaves, strict=True)
                    if name in plan.anchor
                ]
                value = value + 0.5 * plan.proximal * torch.stack(near).sum()
            for leaf in every:
                leaf.grad = None
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    expert.arrays = expert.detached()
    return checked(float(total) / len(samples))


def optimizer_of(plan: Plan, leaves: Sequence[Tensor], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW for these leaves, which are in the order of the plan's names."""
    rated = [(leaf, plan.rates[group(name) != "head"]) for name, leaf in zip(plan.names, leaves, strict=True)]
    by_rate: dict[float, list[Tensor]] = defaultdict(
        list
    )  # each group of an optimizer's costs a step its own calls
    for leaf, rate in [*rated, *plan.also]:
        by_rate[rate].append(leaf)
    groups = [{"params": each, "lr": rate} for rate, each in by_rate.items()]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def checked(loss: float) -> float:
    """The loss; FedmsError where it is not finite."""
    if not math.isfinite(loss):
        raise FedmsError("training diverged: the loss is not finite; lower training.learning_rate")
    return loss


def reach(steps: int, rate: float, decay: float, largest: float) -> float:
    """How far AdamW can move a number at most in so many steps, where the largest is so large at the start."""
    far = steps * rate * LONGEST_STEP
    return far + steps * rate * decay * (largest + far)


def reached(names: Sequence[str]) -> list[int]:
    """The blocks that a loss goes back to, to train these arrays; a prompt lies below them all."""
    if "prompt.tokens" in names:
        return [flops.BELOW]
    return sorted({block for name in names if (block := block_of(name)) is not None})
