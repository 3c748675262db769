"""Local training of one client's expert: what a round changes, and the step that all training takes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedms.config.sections import TrainingConfig
from fedms.core.errors import FedmsError
from fedms.data.federated import Samples
from fedms.model import flops
from fedms.model.arrays import Arrays, moved
from fedms.model.expert import Expert
from fedms.model.parts import group, part_of, rate_of
from fedms.training.inputs import batches
from fedms.training.objectives.base import Objective
from fedms.training.objectives.classification import Classification
from fedms.training.runner import Runner

LossFunction = Callable[[np.ndarray, Tensor], Tensor]
"""From positions and logits of a batch to its mean loss."""

BatchLoss = Callable[[Runner, Expert, Samples, int, np.ndarray, list[int]], Tensor]
"""From runner, expert, samples, boundary, positions and trained blocks to a batch's mean loss."""

LONGEST_STEP = 7.28
"""Upper bound on a step of AdamW, in units of its learning rate.

By Cauchy and Schwarz, |m| <= (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) sqrt(v), with b1 = 0.9 and b2 = 0.999.
The correction of the bias only shortens the step.
"""


@dataclass(frozen=True)
class Plan:
    """What a round of training changes, and how."""

    names: Sequence[str]
    """Arrays that train"""
    rates: tuple[float, float]
    """Learning rates of the head and of all else"""
    phases: tuple[tuple[str, ...], ...] = ()
    """Parameter groups that train one after another, for equal numbers of the round's steps.

    If empty, or if there are fewer steps than phases, all groups train at once.
    """
    anchor: Mapping[str, Tensor] = field(default_factory=dict)
    """The arrays to which a proximal term pulls"""
    proximal: float = 0.0
    """Weight mu of the term: the loss gains mu / 2 times the squared distance (FedProx, arXiv 1812.06127)"""
    loss: LossFunction | None = None
    """Replaces the objective's loss"""
    also: Sequence[tuple[Tensor, float]] = ()
    """Further leaves with their learning rates"""
    objective: Objective = field(default_factory=Classification)
    head_alone: bool = False
    """Whether the expert differs from the frozen global one in its head alone"""
    batch_loss: BatchLoss | None = None
    """Computes a batch's mean loss from the expert itself, in place of feature, head and objective"""
    remedy: str = "lower training.learning_rate"
    """What to do if training diverges, for the message"""


class TrainingSteps:
    """The steps of one round of training, for one expert or for the experts of several clients in one batch.

    Attributes:
        optimizer: AdamW for all arrays that train.
        totals: for each client, the sum of its samples' losses in the last epoch, without proximal term,
            [clients].
    """

    def __init__(
        self,
        expert: Expert,
        plan: Plan,
        config: TrainingConfig,
        anchor: Mapping[str, Tensor],
        device: torch.device,
        clients: int = 1,
    ) -> None:
        leaves = expert.train(plan.names)
        self.leaves: Arrays = dict(zip(plan.names, leaves, strict=True))
        self.optimizer = optimizer_of(plan, leaves, config)
        self.totals = torch.zeros(clients, device=device)
        self._expert = expert
        self._proximal = plan.proximal
        self._anchor = {name: anchor[name] for name in plan.names if name in anchor}

    def step(self, loss: Tensor, summed: Tensor | None) -> None:
        """Take one step on the loss and its proximal term.

        Args:
            loss: what the step lowers, without proximal term; a scalar.
            summed: for each client that still trains, what this batch adds to `totals`, [running]; None for
                nothing.
        """
        if summed is not None:
            self.totals[: len(summed)] += summed
        if self._proximal:
            arrays = self._expert.arrays
            near = [(arrays[name] - far).square().sum() for name, far in self._anchor.items()]
            loss = loss + 0.5 * self._proximal * torch.stack(near).sum()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def drop_anchors(self, running: int) -> None:
        """Keep the anchors of the first clients."""
        self._anchor = {name: far[:running] for name, far in self._anchor.items()}


def train_expert(
    runner: Runner,
    expert: Expert,
    plan: Plan,
    samples: Samples,
    boundary: int,
    config: TrainingConfig,
    order: np.random.Generator,
) -> float:
    """Train the expert for `config.epochs` epochs with AdamW; return the mean loss of the last epoch.

    The mean is without the proximal term.

    Raises:
        FedmsError: the loss is not finite.
    """
    device = runner.backbone.device
    steps = TrainingSteps(expert, plan, config, plan.anchor, device)
    lengths = runner.cache.inputs.lengths(samples.rows)
    per_epoch = -(-len(samples) // config.batch_size)
    count = per_epoch * config.epochs
    phases = plan.phases if count >= len(plan.phases) else ()  # else the last phase would never train
    trained = reached(plan.names)
    features = None
    if not trained:  # they stay the same
        features = moved(runner.outputs(expert, samples, boundary, plan.head_alone).features, device)
    for epoch in range(config.epochs):
        for number, picks in enumerate(batches(lengths, config.batch_size, order), epoch * per_epoch):
            if phases:
                phase = phases[number * len(phases) // count]
                for name, leaf in steps.leaves.items():
                    leaf.requires_grad_(group(name) in phase)
                trained = reached([name for name in plan.names if group(name) in phase])
            if plan.batch_loss:
                logits = None
            elif features is None:
                logits = expert.logits(runner.feature(expert, samples, boundary, picks, trained))
            else:
                logits = expert.logits(features[moved(torch.from_numpy(picks), device)])
            if logits is None:
                assert plan.batch_loss is not None
                loss = plan.batch_loss(runner, expert, samples, boundary, picks, trained)
            elif plan.loss:
                loss = plan.loss(picks, logits)
            else:
                loss = plan.objective.loss(logits, moved(plan.objective.targets(samples, picks), device))
            last = epoch == config.epochs - 1
            steps.step(loss, loss.detach()[None] * len(picks) if last else None)
    expert.arrays = expert.detached()
    return checked(float(steps.totals[0]) / len(samples), plan)


def optimizer_of(plan: Plan, leaves: Sequence[Tensor], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW for these leaves, which are in the order of the plan's names."""
    rated = [(leaf, rate_of(name, plan.rates)) for name, leaf in zip(plan.names, leaves, strict=True)]
    by_rate: dict[float, list[Tensor]] = defaultdict(list)  # each group of an optimizer has its own calls
    for leaf, rate in [*rated, *plan.also]:
        by_rate[rate].append(leaf)
    groups = [{"params": each, "lr": rate} for rate, each in by_rate.items()]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def checked(loss: float, plan: Plan) -> float:
    """The loss.

    Raises:
        FedmsError: it is not finite; the line says what to do.
    """
    if not math.isfinite(loss):
        raise FedmsError(f"training diverged: the loss is not finite; {plan.remedy}")
    return loss


def reach(steps: int, rate: float, decay: float, largest: float) -> float:
    """Upper bound on how far AdamW can move a parameter in `steps` steps.

    Args:
        rate: the learning rate.
        decay: the weight decay.
        largest: the largest absolute value of the array at the start.
    """
    far = steps * rate * LONGEST_STEP
    return far + steps * rate * decay * (largest + far)


def reached(names: Sequence[str]) -> list[int]:
    """The blocks that the gradient passes when these arrays train; `flops.BELOW` alone for all of them."""
    blocks = {block for name in names if (part := part_of(name)) and (block := part.block(name)) is not None}
    return [flops.BELOW] if flops.BELOW in blocks else sorted(blocks)
