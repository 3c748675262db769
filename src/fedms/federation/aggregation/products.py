"""Means of the products BA: averaging A and B apart is not the same.

FedEx-LoRA: Singhal et al., Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models,
arXiv 2410.09432.

FlexLoRA: Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources, arXiv 2402.11505.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.config import Config
from fedms.federation.aggregation.aggregator import Aggregator
from fedms.federation.aggregation.mean import average, ordered, weighted_mean
from fedms.federation.messages import Update

NEGLIGIBLE = 1e-9
"""A singular value below this share of the largest is a rounding error."""


def exact(shared: Mapping[str, Tensor], updates: Sequence[Update], scale: float) -> dict[str, Tensor]:
    """As `average`, with the error of averaging A and B apart kept in a frozen residual:

        scale (sum p_n B_n A_n - Bbar Abar) = scale sum p_n (B_n - Bbar)(A_n - Abar)

    (FedEx-LoRA). The residual is [out, in] and adds up over the rounds.
    """
    new = average(shared, updates)
    for stem in _pairs(updates):
        A, B = new[f"{stem}.lora_A"].double(), new[f"{stem}.lora_B"].double()
        parts = [
            (
                update.weight,
                (update.arrays[f"{stem}.lora_B"].double() - B)
                @ (update.arrays[f"{stem}.lora_A"].double() - A),
            )
            for update in ordered(updates)
            if f"{stem}.lora_A" in update.arrays
        ]
        lost = (scale * weighted_mean(parts)).float()
        before = shared.get(f"{stem}.residual")
        new[f"{stem}.residual"] = lost if before is None else before + lost
    return new


def svd(shared: Mapping[str, Tensor], updates: Sequence[Update], rank: int) -> dict[str, Tensor]:
    """The mean of the products BA, cut to the rank by singular value decomposition; the rest as `average`.

    The clients' own ranks may differ. A client of rank r takes the first r rows of A and columns of B: its
    best approximation of that rank (FlexLoRA).
    """
    others = [
        replace(update, arrays={n: a for n, a in update.arrays.items() if not n.startswith("block.")})
        for update in updates
    ]
    new = average(shared, others)
    for stem in _pairs(updates):
        found = [update for update in ordered(updates) if f"{stem}.lora_A" in update.arrays]
        total = sum(update.weight for update in found)
        A = torch.cat([update.arrays[f"{stem}.lora_A"].double() for update in found])
        B = torch.cat(
            [(update.weight / total) * update.arrays[f"{stem}.lora_B"].double() for update in found], dim=1
        )
        # the decomposition of the product from those of its thin factors
        left, right = torch.linalg.qr(B), torch.linalg.qr(A.T)
        U, S, Vt = torch.linalg.svd(left.R @ right.R.T)
        kept = min(rank, int(S.gt(NEGLIGIBLE * S[0]).sum()))
        root = S[:kept].sqrt()
        # where the product has fewer directions than the rank, A keeps its own rows: a direction in which
        # both A and B are zero has no gradient
        rest = shared[f"{stem}.lora_A"].double()[kept:] if kept < rank else A[:0]
        new[f"{stem}.lora_A"] = torch.cat([root[:, None] * (Vt[:kept] @ right.Q.T), rest]).float()
        new[f"{stem}.lora_B"] = F.pad(left.Q @ U[:, :kept] * root, (0, rank - kept)).float()
    return new


def _pairs(updates: Sequence[Update]) -> list[str]:
    """Names of the layers that have a pair in any update."""
    names = {name for update in updates for name in update.arrays if name.endswith(".lora_A")}
    return [name.removesuffix(".lora_A") for name in sorted(names)]


def _exact(shared: Mapping[str, Tensor], updates: Sequence[Update], config: Config) -> dict[str, Tensor]:
    return exact(shared, updates, config.lora.alpha / config.lora.rank)


def _svd(shared: Mapping[str, Tensor], updates: Sequence[Update], config: Config) -> dict[str, Tensor]:
    return svd(shared, updates, config.lora.rank)


AGGREGATORS = (
    Aggregator("exact", _exact, products=True, residual=True),
    Aggregator("svd", _svd, products=True, mixed_ranks=True),
)
