"""Names of an expert's arrays, and what a name says."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

Arrays = dict[str, Tensor]


def split_name(name: str) -> tuple[int, str]:
    """`block.3.query` or `block.3.query.lora_A` -> (3, "query")."""
    _, block, rest = name.split(".", 2)
    return int(block), rest.removesuffix(".lora_A").removesuffix(".lora_B").removesuffix(".residual")


def block_of(name: str) -> int | None:
    """The block an array belongs to, or None."""
    found = re.match(r"(?:mixer\.|beside\.)?block\.(\d+)\.", name)
    return int(found[1]) if found else None


PARTS = ("block.", "head.", "attention.", "prompt.", "mixer.")
"""How the names of an expert's arrays begin."""


def group(name: str) -> str:
    """The parameter group of an expert's array: `A` and `B` for the pairs' matrices, else the first part of its name."""
    if name.startswith("block."):
        return "A" if name.endswith(".lora_A") else "B"
    return name.partition(".")[0]


def strip(arrays: Mapping[str, Tensor], prefix: str) -> Arrays:
    """The arrays under a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def prefixed(arrays: Mapping[str, Tensor], prefix: str) -> Arrays:
    return {f"{prefix}{name}": array for name, array in arrays.items()}
