"""The device that tensors live on: what is set once for it, and how they get there."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def prepare(device: str, deterministic: bool) -> None:
    """Have a GPU compute the same bits each time, or whatever is fastest; a CPU does so as it is."""
    if device == "cuda":
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # or matrix products could differ from call to call
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # what is not written is not read


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The same on the device, without waiting for it: to a GPU by way of pinned memory, which stays reserved until it is read."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")
