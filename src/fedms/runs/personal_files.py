"""The file of a client's finished model in a run folder. What all clients hold alike may be kept once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedms.core.errors import FedmsError
from fedms.core.files import read_arrays

MODEL = "model.safetensors"
COMMON = "server/common.safetensors"
"""What the finished models of all clients hold alike, in a run folder"""
SHARED_IN = "common"
"""Key in a model's values: the names of its arrays that lie in `COMMON`"""
OWN_SUMS, OWN_COUNTS = "own.sums", "own.counts"


def read_model(run: Path, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays and values of a client's finished model.

    Args:
        run: the run folder.
        path: the model's file.

    Raises:
        FedmsError: the file, or what all clients hold alike, is missing or damaged.
    """
    arrays, meta = read_arrays(path)
    names = meta.pop(SHARED_IN, None)
    if names is None:
        return arrays, meta
    common = read_arrays(run / COMMON)[0]
    try:
        arrays |= {name: common[name] for name in names}
        if OWN_SUMS in arrays:
            arrays[OWN_SUMS] = _all_rows(arrays)
    except (KeyError, TypeError, IndexError, RuntimeError):
        raise FedmsError(f"{run / COMMON}: damaged: it does not hold what {path} lacks") from None
    return arrays, meta


def same(one: Tensor | None, other: Tensor) -> bool:
    """Whether two arrays have the same type, shape and bits."""
    if one is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (one, other)))


def held_rows(arrays: Mapping[str, Tensor]) -> Tensor:
    """The feature sums of the classes that the client holds; those of other classes are zero."""
    sums, held = arrays[OWN_SUMS], arrays[OWN_COUNTS] > 0
    return sums[held] if not sums[~held].any() else sums


def _all_rows(arrays: Mapping[str, Tensor]) -> Tensor:
    """The feature sums of all classes, from those of `held_rows`."""
    sums, held = arrays[OWN_SUMS], arrays[OWN_COUNTS] > 0
    if len(sums) == len(held):
        return sums
    full = sums.new_zeros((len(held), *sums.shape[1:]))
    full[held] = sums
    return full
