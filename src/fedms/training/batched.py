"""Local training of several clients in one batch.

Step s of all clients is one forward and one backward pass of the backbone. The frozen layers see one large
batch; each pair and head sees its own client's samples (`model/batched.py`). Every client has the batches,
the steps and the optimizer that it would have alone. Only the last bits differ: a matrix product of another
size adds in another order, and there may be more padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.config.sections import TrainingConfig
from fedms.data.federated import Samples
from fedms.model.arrays import Arrays, moved
from fedms.model.backbone import ragged
from fedms.model.batched import Stack, can_stack
from fedms.model.expert import Expert
from fedms.training.expert_training import Plan, TrainingSteps, reached
from fedms.training.inputs import batches
from fedms.training.runner import Cost, Runner

BatchKey = tuple[tuple[str, ...], tuple[tuple[str, tuple[int, ...]], ...]]
"""Names of the arrays that train, and names and shapes of all arrays."""


@dataclass
class Member:
    """One client in a stack."""

    expert: Expert
    plan: Plan
    samples: Samples
    order: np.random.Generator
    """Draws the order of its batches"""
    cost: Cost
    """Cost of its task so far; training adds to it"""
    loss: float = math.nan
    """Mean loss of the last epoch, once it has trained"""

    def steps(self, config: TrainingConfig) -> int:
        return -(-len(self.samples) // config.batch_size) * config.epochs

    @property
    def kind(self) -> BatchKey | None:
        """Clients of one kind can train as one stack; None if this client cannot train in a stack, or has
        the kept features of the global expert.
        """
        plan = self.plan
        if (
            plan.phases
            or plan.loss
            or plan.batch_loss
            or plan.also
            or plan.head_alone
            or not can_stack(self.expert)
        ):
            return None
        shapes = sorted((name, tuple(array.shape)) for name, array in self.expert.arrays.items())
        return tuple(plan.names), tuple(shapes)


def train_stack(runner: Runner, members: Sequence[Member], boundary: int, config: TrainingConfig) -> None:
    """Train these clients, which are of one kind and one stage, as `train_expert` trains each of them.

    A member's loss may become infinite or not a number; the caller checks it.

    The cost booked for a client is what it would be alone, with its own batches. Padding within the stack is
    the engine's choice, so results state the same costs for every engine.
    """
    device = runner.backbone.device
    # the members with the fewest steps are last in the stack, so that they can be dropped from its end
    members = sorted(members, key=lambda member: -member.steps(config))
    drawn = [_batches(runner, member, config) for member in members]
    last_epoch = [len(each) - len(each) // config.epochs for each in drawn]
    stack, plan = Stack([member.expert for member in members]), members[0].plan
    steps = TrainingSteps(stack, plan, config, _anchors(members), device, len(members))
    trained = reached(plan.names)
    for number in range(len(drawn[0])):
        running = sum(len(each) > number for each in drawn)
        if running < len(stack):
            _release(stack, members, running)
            stack.keep(running, steps.optimizer)
            steps.drop_anchors(running)
        picked, pairs, parts = [each[number] for each in drawn[:running]], stack.pairs(start=boundary), []
        for member, picks in zip(members, picked, strict=False):
            runner.resume(member.cost)
            own, lengths = runner.cache.hidden(member.samples, boundary, picks, member.expert.below(boundary))
            parts.append((own, lengths))
            runner.book(pairs, own.shape[0], own.shape[1], boundary, trained)
            member.cost = runner.pause()
        targets = [
            plan.objective.targets(member.samples, picks)
            for member, picks in zip(members, picked, strict=False)
        ]
        share, counted = _weights([len(picks) for picks in picked], [number >= at for at in last_epoch])
        runner.backbone.attach(pairs)
        hidden, lengths = _one_batch(parts)
        logits = stack.logits(runner.backbone.pool(runner.backbone.run(hidden, lengths, boundary), lengths))
        losses = plan.objective.loss(logits, moved(_rectangle(targets), device), "none").view(running, -1)
        steps.step((losses * moved(share, device)).sum(), (losses.detach() * moved(counted, device)).sum(1))
    _release(stack, members, 0)
    for member, total in zip(members, steps.totals.tolist(), strict=True):
        member.loss = total / len(member.samples)


def _batches(runner: Runner, member: Member, config: TrainingConfig) -> list[np.ndarray]:
    """The batches of all a client's steps."""
    lengths = runner.cache.inputs.lengths(member.samples.rows)
    return [
        picks for _ in range(config.epochs) for picks in batches(lengths, config.batch_size, member.order)
    ]


def _anchors(members: Sequence[Member]) -> Arrays:
    """The members' anchors of the arrays that train, stacked."""
    anchors, names = [member.plan.anchor for member in members], members[0].plan.names
    return {name: torch.stack([anchor[name] for anchor in anchors]) for name in names if name in anchors[0]}


def _release(stack: Stack, members: Sequence[Member], running: int) -> None:
    """Give the members after the first `running` their trained arrays."""
    for number in range(running, len(stack)):
        members[number].expert.arrays = stack.member(number)


def _weights(counts: Sequence[int], last: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Weights of the places of a batch, both [clients, largest] and 0 at padding.

    The first weighs the losses to each client's mean. The second is 1 in a client's last epoch, else 0.
    """
    counted = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return counted / torch.tensor(counts)[:, None], (
        counted & torch.tensor(last[: len(counts)])[:, None]
    ).float()


def _rectangle(parts: Sequence[Tensor]) -> Tensor:
    """Tensors one after another, each extended to the length of the longest.

    Its last row fills the free places: a real row, so the loss there is finite if the client's own losses
    are.
    """
    largest = max(map(len, parts))
    return torch.cat(
        [torch.cat([part, part[-1:].expand(largest - len(part), *part.shape[1:])]) for part in parts]
    )


def _one_batch(parts: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Hidden states [b, tokens, d] and lengths of several clients as those of one batch."""
    longest = max(hidden.shape[1] for hidden, _ in parts)
    hidden = _rectangle([F.pad(hidden, (0, 0, 0, longest - hidden.shape[1])) for hidden, _ in parts])
    each = [torch.full((len(own),), own.shape[1]) if lengths is None else lengths for own, lengths in parts]
    return hidden, ragged(_rectangle(each), longest)
