"""Pure functions from updates to new shared arrays.

Keys may differ from client to client (blocks, capacities), so weights are normalised per key, over those that trained it;
what nobody trained stays as it was. Updates are taken in the order of client names, so the order of answers does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.federation.messages import Update

NEGLIGIBLE = 1e-9
"""Singular values below this share of the largest are rounding."""


def average(shared: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
    """Weighted mean per key (FedAvg, arXiv 1602.05629)."""
    new = dict(shared)
    for name in sorted({name for update in updates for name in update.arrays}):
        parts = [(update.weight, update.arrays[name]) for update in ordered(updates) if name in update.arrays]
        new[name] = _mean(parts).to(parts[0][1].dtype)
    return new


def exact(shared: Mapping[str, Tensor], updates: Sequence[Update], scale: float) -> dict[str, Tensor]:
    """As `average`, and what averaging A and B apart loses is kept in a frozen residual:

        scale (sum p_n B_n A_n - Bbar Abar) = scale sum p_n (B_n - Bbar)(A_n - Abar)

    (FedEx-LoRA, arXiv 2410.09432). The residual is [out, in] and adds up over the rounds.
    """
    new = average(shared, updates)
    for name in sorted({name for update in updates for name in update.arrays if name.endswith(".lora_A")}):
        stem = name.removesuffix(".lora_A")
        A, B = new[name].double(), new[f"{stem}.lora_B"].double()
        parts = [
            (
                update.weight,
                (update.arrays[f"{stem}.lora_B"].double() - B) @ (update.arrays[name].double() - A),
            )
            for update in ordered(updates)
            if name in update.arrays
        ]
        lost = (scale * _mean(parts)).float()
        before = shared.get(f"{stem}.residual")
        new[f"{stem}.residual"] = lost if before is None else before + lost
    return new


def svd(shared: Mapping[str, Tensor], updates: Sequence[Update], rank: int) -> dict[str, Tensor]:
    """The mean of the products B A, cut to the rank by singular value decomposition, whatever the clients' own ranks; the rest
    as `average`. A client of rank r takes the first r rows of A and columns of B, the best there are (FlexLoRA, arXiv 2402.11505).
    """
    pairs = sorted(
        {
            name.removesuffix(".lora_A")
            for update in updates
            for name in update.arrays
            if name.endswith(".lora_A")
        }
    )
    plain = [
        replace(update, arrays={n: a for n, a in update.arrays.items() if not n.startswith("block.")})
        for update in updates
    ]
    new = average(shared, plain)
    for stem in pairs:
        found = [update for update in ordered(updates) if f"{stem}.lora_A" in update.arrays]
        total = sum(update.weight for update in found)
        A = torch.cat([update.arrays[f"{stem}.lora_A"].double() for update in found])
        B = torch.cat(
            [(update.weight / total) * update.arrays[f"{stem}.lora_B"].double() for update in found], dim=1
        )
        # the product's decomposition from those of its thin factors
        left, right = torch.linalg.qr(B), torch.linalg.qr(A.T)
        U, S, Vt = torch.linalg.svd(left.R @ right.R.T)
        kept = min(rank, int(S.gt(NEGLIGIBLE * S[0]).sum()))
        root = S[:kept].sqrt()
        # where the product has fewer directions than the rank, A keeps its own: with A and B zero, neither would train again
        rest = shared[f"{stem}.lora_A"].double()[kept:] if kept < rank else A[:0]
        new[f"{stem}.lora_A"] = torch.cat([root[:, None] * (Vt[:kept] @ right.Q.T), rest]).float()
        new[f"{stem}.lora_B"] = F.pad(left.Q @ U[:, :kept] * root, (0, rank - kept)).float()
    return new


def ordered(updates: Sequence[Update]) -> list[Update]:
    """In the order of client names."""
    return sorted(updates, key=lambda update: update.client)


def _mean(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    total = sum(weight for weight, _ in parts)
    mean = torch.zeros_like(parts[0][1], dtype=torch.float64)
    for weight, array in parts:
        mean += (weight / total) * array.double()
    return mean
