"""The device of the tensors: its settings."""

from __future__ import annotations

import os

import torch

from fedms.config.sections import Device
from fedms.core.errors import FedmsError


def resolved(device: Device) -> str:
    """The device that a config means on this machine: `cpu`, `cuda` or `mps`.

    Raises:
        FedmsError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    allowed = [name for name, found in there.items() if found]
    if device == "auto":
        return allowed[0]
    if device not in allowed:
        raise FedmsError(f"device: {device:.80} is not available here; allowed: auto, {', '.join(allowed)}")
    return device


def prepare(device: str, deterministic: bool) -> None:
    """Set whether a GPU computes the same bits each time, or is as fast as it can be.

    A CPU needs no setting.
    """
    if device == "cuda":
        # without this setting matrix products can differ from call to call
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        # no code here reads memory that was not written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
