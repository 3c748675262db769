"""Two experts and a gate: g_G f_G + g_L f_L, on probabilities or on logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mix(global_logits: Tensor, local_logits: Tensor, local_weight: Tensor, on: str = "probabilities") -> Tensor:
    """Log-probabilities of the mixture, [n, C], from logits [n, C] twice and g_L [n]."""
    weight = local_weight[:, None]
    if on == "logits":
        return F.log_softmax((1 - weight) * global_logits + weight * local_logits, dim=1)
    # log space, so that a weight of exactly 0 or 1 leaves one expert alone and gradients stay finite
    tiny = torch.finfo(weight.dtype).tiny
    own = F.log_softmax(local_logits, dim=1) + weight.clamp_min(tiny).log()
    everyone = F.log_softmax(global_logits, dim=1) + (1 - weight).clamp_min(tiny).log()
    return torch.logaddexp(own, everyone)
