"""Local training of several clients in one batch.

Step s of all of them is one pass through the backbone, forward and back: the frozen layers see one large batch, each pair and head its own
client's part of it (`model/stack.py`). Every client has the batches, the steps and the optimizer that it would have alone. What is
not the same are the last bits: a matrix product of another size adds in another order, and padding may be longer.
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
from fedms.model.backbone import MASKED
from fedms.model.batched import Stack, can_stack
from fedms.model.expert import Expert
from fedms.training.device import moved
from fedms.training.expert_training import Plan, optimizer_of, reached
from fedms.training.inputs import batches
from fedms.training.runner import Cost, Runner

BatchKey = tuple[tuple[str, ...], tuple[tuple[str, tuple[int, ...]], ...]]
"""Names that train, and names and shapes of all arrays."""


@dataclass
class Member:
    """One client's part in a stack."""

    expert: Expert
    plan: Plan
    samples: Samples
    order: np.random.Generator
    """Of its batches"""
    cost: Cost
    """Of its task; goes on here"""
    loss: float = math.nan
    """Mean loss of the last pass, when it has trained"""

    def steps(self, config: TrainingConfig) -> int:
        return -(-len(self.samples) // config.batch_size) * config.epochs

    @property
    def kind(self) -> BatchKey | None:
        """What those have in common who can be stacked; None where one cannot be."""
        plan = self.plan
        if plan.phases or plan.loss or plan.also or not can_stack(self.expert):
            return None
        return tuple(plan.names), tuple(
            sorted((name, tuple(array.shape)) for name, array in self.expert.arrays.items())
        )


def train_stack(runner: Runner, members: Sequence[Member], boundary: int, config: TrainingConfig) -> None:
    """As `train_expert` for each of these, who are of one kind and one stage; a loss may turn out not to be finite.

    Booked for each client is what it would have cost alone, by its own batches: padding within the stack is the engine's affair, so
    results say the same of costs however the engine trained.
    """
    device = runner.backbone.device
    members = sorted(
        members, key=lambda member: -member.steps(config)
    )  # who has finished is last in the stack
    lengths = [runner.cache.inputs.lengths(member.samples.rows) for member in members]
    drawn = [
        [picks for _ in range(config.epochs) for picks in batches(of, config.batch_size, member.order)]
        for of, member in zip(lengths, members, strict=True)
    ]
    last_pass = [len(each) - len(each) // config.epochs for each in drawn]
    stack = Stack([member.expert for member in members])
    names, proximal = members[0].plan.names, members[0].plan.proximal
    anchor = {
        name: torch.stack([member.plan.anchor[name] for member in members])
        for name in names
        if name in members[0].plan.anchor
    }
    optimizer = optimizer_of(members[0].plan, stack.train(names), config)
    trained = reached(names)
    totals = torch.zeros(len(members), device=device)
    for step in range(len(drawn[0])):
        running = sum(len(each) > step for each in drawn)
        if running < len(stack):
            _part(stack, members, running)
            stack.keep(running, optimizer)
        picked, pairs, parts = [each[step] for each in drawn[:running]], stack.pairs(), []
        for member, picks in zip(members, picked, strict=False):
            runner.resume(member.cost)
            own, mask = runner.cache.hidden(member.samples, boundary, picks)
            parts.append((own, mask))
            runner.book(pairs, own.shape[0], own.shape[1], boundary, trained)
            member.cost = runner.pause()
        labels = [member.samples.labels[picks] for member, picks in zip(members, picked, strict=False)]
        share, counted = _weights([len(picks) for picks in picked], [step >= at for at in last_pass])
        runner.backbone.attach(pairs)
        hidden, mask = _one_batch(parts)
        logits = stack.logits(runner.backbone.pool(runner.backbone.run(hidden, mask, boundary), mask))
        losses = F.cross_entropy(logits, moved(_rectangle(labels), device), reduction="none").view(
            running, -1
        )
        value = (losses * moved(share, device)).sum()
        totals[:running] += (losses.detach() * moved(counted, device)).sum(1)
        if proximal:
            near = [(stack.arrays[name] - far[:running]).square().sum() for name, far in anchor.items()]
            value = value + 0.5 * proximal * torch.stack(near).sum()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    _part(stack, members, 0)
    for member, total in zip(members, totals.tolist(), strict=True):
        member.loss = total / len(member.samples)


def _part(stack: Stack, members: Sequence[Member], running: int) -> None:
    """Give those their arrays who have no step left."""
    for number in range(running, len(stack)):
        members[number].expert.arrays = stack.member(number)


def _weights(counts: Sequence[int], last: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """What each place of a batch counts in the loss and in the mean of the last pass, [clients, largest]: nothing where it is padding."""
    counted = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return counted / torch.tensor(counts)[:, None], (
        counted & torch.tensor(last[: len(counts)])[:, None]
    ).float()


def _rectangle(parts: Sequence[Tensor]) -> Tensor:
    """Tensors one after another, each as long as the longest: its last line again in the places that it leaves, which is a real one
    and so never turns out as no number."""
    largest = max(map(len, parts))
    return torch.cat(
        [torch.cat([part, part[-1:].expand(largest - len(part), *part.shape[1:])]) for part in parts]
    )


def _one_batch(parts: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Hidden states [b, tokens, d] and masks of several clients as those of one batch."""
    longest = max(hidden.shape[1] for hidden, _ in parts)
    hidden = _rectangle([F.pad(hidden, (0, 0, 0, longest - hidden.shape[1])) for hidden, _ in parts])
    if all(mask is None and own.shape[1] == longest for own, mask in parts):
        return hidden, None
    masks = [own.new_zeros(len(own), 1, 1, own.shape[1]) if mask is None else mask for own, mask in parts]
    return hidden, _rectangle([F.pad(mask, (0, longest - mask.shape[3]), value=MASKED) for mask in masks])
