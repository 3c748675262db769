"""The gate: the weight of a client's local expert for each sample.

    g_L(x) = sigmoid(logit(prior) + s (log r(x) + delta(u(x)))),   g_G = 1 - g_L

delta reads the frozen feature u through the gate adapter, adapter(u) = u + U act(D u) with U = 0 at the
start, and a small private network with a last layer of zeros at the start. Only the adapter is shared
(FedMS, arXiv 2312.15926).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.core import seeds

COUNT_STRENGTH = 2.0
"""Number of own samples of a class at which the count gate gives both experts equal weight."""
ADAPTER = ("gate.adapter.down", "gate.adapter.up")
NETWORK = (
    "gate.network.hidden.weight",
    "gate.network.hidden.bias",
    "gate.network.out.weight",
    "gate.network.out.bias",
)


def shared_names(share: str) -> tuple[str, ...]:
    """The gate's arrays that are averaged over the clients, by `gate.share`."""
    return {"adapter": ADAPTER, "none": (), "all": (*ADAPTER, *NETWORK)}[share]


def fresh_gate(size: int, adapter_rank: int, hidden: int, seed: int, client: str) -> dict[str, Tensor]:
    """A new gate for features of this size. Clients have the same adapter, and each its own network."""

    def uniform(rows: int, columns: int, *purpose: str) -> Tensor:
        bound = 1 / math.sqrt(columns)
        return torch.empty(rows, columns).uniform_(
            -bound, bound, generator=seeds.torch_generator(seed, "gate", *purpose)
        )

    return {
        "gate.adapter.down": uniform(adapter_rank, size, "adapter"),
        "gate.adapter.up": torch.zeros(size, adapter_rank),
        "gate.network.hidden.weight": uniform(hidden, size, "network", client),
        "gate.network.hidden.bias": torch.zeros(hidden),
        "gate.network.out.weight": torch.zeros(1, hidden),
        "gate.network.out.bias": torch.zeros(1),
    }


def adapt(arrays: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """adapter(u) = u + U act(D u), [n, d] -> [n, d]; the identity while U is zero."""
    return x + F.linear(F.gelu(F.linear(x, arrays["gate.adapter.down"])), arrays["gate.adapter.up"])


def delta(arrays: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The learned gate's addition to the evidence, [n, d] -> [n]; zero at the start."""
    hidden = F.gelu(
        F.linear(adapt(arrays, x), arrays["gate.network.hidden.weight"], arrays["gate.network.hidden.bias"])
    )
    return F.linear(hidden, arrays["gate.network.out.weight"], arrays["gate.network.out.bias"])[:, 0]


def count_evidence(global_logits: Tensor, counts: Tensor) -> Tensor:
    """Evidence of the count gate from logits [n, C] and label counts [C]; [n].

    At prior 1/2 it gives the local expert the weight sum_c p_G(c) n_c / (n_c + 2).
    """
    known = counts / (counts + COUNT_STRENGTH)
    return (F.softmax(global_logits, dim=1) @ known.to(global_logits.dtype)).logit(eps=1e-6)


def local_weight(evidence: Tensor, prior: float) -> Tensor:
    """g_L [n] from s (log r + delta) [n] and the prior; prior 1 is only the local expert, 0 the global."""
    if prior in (0.0, 1.0):
        return torch.full_like(evidence, prior)
    return torch.sigmoid(evidence + math.log(prior / (1 - prior)))


def mix(
    global_logits: Tensor, local_logits: Tensor, local_weight: Tensor, on: str = "probabilities"
) -> Tensor:
    """Log-probabilities of the mixture, [n, C], from both experts' logits [n, C] and g_L [n]."""
    weight = local_weight[:, None]
    if on == "logits":
        return F.log_softmax((1 - weight) * global_logits + weight * local_logits, dim=1)
    # in log space a weight of exactly 0 or 1 leaves one expert alone, and gradients stay finite
    tiny = torch.finfo(weight.dtype).tiny
    own = F.log_softmax(local_logits, dim=1) + weight.clamp_min(tiny).log()
    everyone = F.log_softmax(global_logits, dim=1) + (1 - weight).clamp_min(tiny).log()
    return torch.logaddexp(own, everyone)
