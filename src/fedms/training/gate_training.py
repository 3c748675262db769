"""Training the gate to tell own from everyone's."""

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
"""Features a step of training the gate, and AdamW's decay there."""


def train_gate(
    arrays: dict[str, Tensor],
    own: Tensor,
    own_evidence: Tensor,
    everyone: Discriminant,
    evidence: Evidence | None,
    config: GateConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Train adapter and network on own features [n, d] against as many drawn from everyone's statistics.

    Binary cross-entropy of log r + delta: own features say local, drawn ones global. Own evidence must be left-one-out.
    """
    names = (*gates.ADAPTER, *gates.NETWORK)
    leaves = {name: arrays[name].detach().clone().requires_grad_(True) for name in names}
    optimizer = torch.optim.AdamW(
        leaves.values(), lr=config.learning_rate, weight_decay=GATE_DECAY, fused=True
    )
    for _ in range(config.epochs):
        drawn = normalise(
            everyone.draw(len(own), generator)[0]
        )  # as long as real features, or length would tell them apart
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
    """Whether delta lowers the cross-entropy on validation features and fresh draws, by more than its standard error."""
    drawn = normalise(
        everyone.draw(len(own), generator)[0]
    )  # as long as real features, or length would tell them apart
    known = torch.cat([own_evidence, evidence.log_ratio(drawn) if evidence else torch.zeros(len(drawn))])
    target = torch.cat([torch.ones(len(own)), torch.zeros(len(drawn))])
    with_network = known + gates.delta(arrays, torch.cat([own, drawn]))
    gain = F.binary_cross_entropy_with_logits(known, target, reduction="none")
    gain = gain - F.binary_cross_entropy_with_logits(with_network, target, reduction="none")
    return len(own) > 1 and float(gain.mean()) > float(gain.std()) / len(gain) ** 0.5
