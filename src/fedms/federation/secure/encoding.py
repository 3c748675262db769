"""Numbers of public ranges as integers mod 2^32, so that sums are exact and masks vanish to the last bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedms.core.errors import FedmsError

MODULUS = 2**32
TOLERANCE = 1e-3
"""How far float32 may carry an honest number beyond its range, as a fraction of the range; it is cut off."""


@dataclass(frozen=True)
class Range:
    """What one client can add to each number of an array. Server and client know it: it tells nothing."""

    low: Tensor
    """Of the array's shape"""
    width: float
    """The largest number is low + width"""
    whole: bool = False
    """Whether the addends are whole numbers; then the sum is exact"""


def around(centre: Tensor, reach: float) -> Range:
    """Numbers no further than this from a centre."""
    return Range(centre.double() - reach, 2 * reach)


def between(shape: tuple[int, ...], low: float, high: float, whole: bool = False) -> Range:
    """An array of this shape with numbers between two."""
    return Range(torch.full(shape, low, dtype=torch.float64), high - low, whole)


def quantum(ranges: Iterable[Range]) -> float:
    """The size of the unit in which these addends are counted, so that their sum stays below 2^32.

    Raises:
        FedmsError: whole numbers whose sum does not.
    """
    known = list(ranges)
    total, room = sum(each.width for each in known), MODULUS - 1 - len(known)
    if all(each.whole for each in known):
        if total > room:
            raise FedmsError("privacy.secure_sum: a count of more than 2^32 cannot be summed")
        return 1.0
    return max(total / room, float(np.finfo(np.float64).tiny))


def encode(name: str, array: Tensor, within: Range, unit: float, rounding: np.random.Generator) -> np.ndarray:
    """The addend as integers, uint32 [numel], each rounded up or down at random, without bias.

    Raises:
        FedmsError: a number is not finite, or outside its range.
    """
    value = (array.detach().cpu().double() - within.low).numpy().ravel()
    slack = TOLERANCE * (within.width + float(within.low.abs().max() if within.low.numel() else 0))
    if not np.isfinite(value).all():
        raise FedmsError(f"{name} is not finite, so it is not sent")
    if value.size and (value.min() < -slack or value.max() > within.width + slack):
        raise FedmsError(f"{name} is outside what an honest client can answer, so it is not sent")
    units = np.clip(value, 0, within.width) / unit
    counted: np.ndarray = np.floor(units + (0 if within.whole else rounding.random(value.size))).astype(
        np.uint32
    )
    return counted


def decode(name: str, total: np.ndarray, ranges: Mapping[str, Range], unit: float) -> Tensor:
    """The sum of these clients' addends, float64.

    Raises:
        FedmsError: it is beyond what their ranges allow, so a client or a mask was false.
    """
    known = list(ranges.values())
    most = sum(each.width for each in known) / unit + len(known)
    if total.size and float(total.max()) > most:
        raise FedmsError(f"the sum of {name} is larger than its clients' answers can make it")
    low = torch.stack([each.low.double() for each in known]).sum(0)
    return low + unit * torch.from_numpy(total.astype(np.float64)).view(low.shape)
