"""Names of an expert's arrays, and what can be read from a name."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Arrays = dict[str, Tensor]


def split_name(name: str) -> tuple[int, str]:
    """`block.3.query` or `block.3.query.lora_A` -> (3, "query")."""
    _, block, rest = name.split(".", 2)
    return int(block), rest.removesuffix(".lora_A").removesuffix(".lora_B").removesuffix(".residual")


def block_of(name: str) -> int | None:
    """The block of an array (`block.3...`, `mixer.block.3...`), or None."""
    found = re.match(r"(?:\w+\.)?block\.(\d+)\.", name)
    return int(found[1]) if found else None


def strip(arrays: Mapping[str, Tensor], prefix: str) -> Arrays:
    """The arrays whose names have this prefix, under their names without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def prefixed(arrays: Mapping[str, Tensor], prefix: str) -> Arrays:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for the copy.

    The way to a GPU is through pinned memory, which torch keeps reserved until the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type not in ("cpu", "mps"))


def is_real(lengths: Tensor, longest: int) -> Tensor:
    """Which tokens of a padded batch are no padding, [batch, longest]."""
    return torch.arange(longest, device=lengths.device)[None, :] < lengths[:, None]
