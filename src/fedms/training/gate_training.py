"""Training the gate to tell a client's own features from everyone's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.config.sections import GateConfig
from fedms.model import gate as gates
from fedms.model.discriminant import Discriminant
from fedms.model.evidence import Evidence
from fedms.model.statistics import normalise

GATE_BATCH, GATE_DECAY = 64, 1e-2
"""Features per step of gate training, and the weight decay of its AdamW."""


def train_gate(
    arrays: dict[str, Tensor],
    own: Tensor,
    own_evidence: Tensor,
    everyone: Discriminant,
    evidence: Evidence | None,
    config: GateConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Train adapter and network on own features [n, d] against n features drawn from everyone's statistics.

    The loss is the binary cross-entropy of log r + delta, with target 1 for own and 0 for drawn features.

    Args:
        arrays: the gate's arrays; they stay unchanged.
        own_evidence: log r of the own features, each with that sample left out of the sums, [n].
        evidence: gives log r of the drawn features; None for 0.
    """
    names = (*gates.ADAPTER, *gates.NETWORK)
    leaves = {name: arrays[name].detach().clone().requires_grad_(True) for name in names}
    optimizer = torch.optim.AdamW(
        leaves.values(), lr=config.learning_rate, weight_decay=GATE_DECAY, fused=True
    )
    for _ in range(config.epochs):
        drawn = _drawn(everyone, len(own), generator)
        x = torch.cat([own, drawn])
        known = torch.cat([own_evidence, evidence.log_ratio(drawn) if evidence else torch.zeros(len(drawn))])
        target = torch.cat([torch.ones(len(own)), torch.zeros(len(drawn))])
        for picks in torch.split(torch.randperm(len(x), generator=generator), GATE_BATCH):
            value = F.binary_cross_entropy_with_logits(
                known[picks] + gates.delta(leaves, x[picks]), target[picks]
            )
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
    """Whether delta lowers the cross-entropy on validation features and new draws.

    The gain must be larger than its standard error.
    """
    drawn = _drawn(everyone, len(own), generator)
    known = torch.cat([own_evidence, evidence.log_ratio(drawn) if evidence else torch.zeros(len(drawn))])
    target = torch.cat([torch.ones(len(own)), torch.zeros(len(drawn))])
    with_network = known + gates.delta(arrays, torch.cat([own, drawn]))
    gain = F.binary_cross_entropy_with_logits(known, target, reduction="none")
    gain = gain - F.binary_cross_entropy_with_logits(with_network, target, reduction="none")
    return len(own) > 1 and float(gain.mean()) > float(gain.std()) / len(gain) ** 0.5


def _drawn(everyone: Discriminant, count: int, generator: torch.Generator) -> Tensor:
    """Features from everyone's statistics, [count, d], scaled to the length of real features.

    At another length, the gate would learn to tell drawn from real features.
    """
    return normalise(everyone.draw(count, generator)[0])
