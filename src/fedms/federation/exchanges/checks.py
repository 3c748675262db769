"""What an answer must be, whatever it answers: shapes, finite numbers, counts, shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedms.core.errors import FedmsError

ROUNDING = 1e-3
"""How far float32 may carry an honest number beyond a bound, as a fraction of the bound."""


class RefusalError(FedmsError):
    """Why an answer does not count, in one line."""


def check_shapes(arrays: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """RefusalError where these are not the wanted arrays, by name, shape and type."""
    if missing := sorted(wanted.keys() - arrays.keys()):
        raise RefusalError(f"{missing[0]} is missing")
    if unknown := sorted(arrays.keys() - wanted.keys()):
        raise RefusalError(f"{unknown[0][:80]!r} was not asked for")
    for name, like in wanted.items():
        if arrays[name].shape != like.shape:
            raise RefusalError(f"{name} is of shape {list(arrays[name].shape)}, not {list(like.shape)}")
        if arrays[name].dtype != like.dtype:
            raise RefusalError(f"{name} is {arrays[name].dtype}, not {like.dtype}".replace("torch.", ""))


def check_finite(arrays: Mapping[str, Tensor]) -> None:
    """RefusalError where a number is not finite."""
    for name, array in arrays.items():
        if array.is_floating_point() and not array.isfinite().all():
            raise RefusalError(f"{name} is not finite")


def check_costs(costs: Any) -> None:
    """RefusalError where these are no costs."""
    if not isinstance(costs, dict):
        raise RefusalError("its costs are no table")
    check_whole(costs.get("flops", 0), "flops")
    once = costs.get("once", {})
    if not isinstance(once, dict):
        raise RefusalError("once is not a table")
    for entry in once.values():
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
            raise RefusalError("once is not a table of names and costs")
        check_whole(entry[1], "a cost in once")


def token_metrics(log_likelihood: float, tokens: int) -> dict[str, Any]:
    """A log-likelihood of some tokens as it travels."""
    return {"log_likelihood": log_likelihood, "tokens": tokens}


def check_tokens(said: Mapping[str, Any], samples: int) -> None:
    """RefusalError where these are no log-likelihood of the tokens of that many samples."""
    check_whole(said.get("tokens"), "tokens", least=samples)
    check_log_likelihood(said.get("log_likelihood"), "log_likelihood")


def check_log_likelihood(value: Any, name: str) -> None:
    """RefusalError where this is no log-likelihood."""
    if not math.isfinite(number := check_number(value, name)) or number > ROUNDING:
        raise RefusalError(f"{name} is no finite number up to zero")


def check_share(value: Any, name: str) -> None:
    """RefusalError where this is no number between 0 and 1."""
    if not -ROUNDING <= check_number(value, name) <= 1 + ROUNDING:
        raise RefusalError(f"{name} is not between 0 and 1")


def check_number(value: Any, name: str) -> float:
    """The number, which may be infinite or NaN; RefusalError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusalError(f"{name} is not a number")
    return value


def check_whole(value: Any, name: str, least: int = 0, most: int | None = None) -> int:
    """The whole number; RefusalError where it is none, or out of its range."""
    number = check_number(value, name)
    if not math.isfinite(number) or number != int(number) or number < least:
        raise RefusalError(f"{name} is not a whole number of at least {least}")
    if most is not None and number > most:
        raise RefusalError(f"{name} is more than {most}")
    return int(number)
