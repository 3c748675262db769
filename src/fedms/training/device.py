"""The device of the tensors: its settings."""

from __future__ import annotations

import os

import torch


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
