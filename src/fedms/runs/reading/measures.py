"""By which figures of a result models are compared: accuracies, or of texts losses (less is better)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """The two figures of which every client has a value, and which way is better.

    Attributes:
        own, everyone: keys of result.json, of its clients and of its frontier: on own and on everyone's data.
        lower: whether less is better.
        metrics: keys of result.json that a comparison sums up.
    """

    own: str
    everyone: str
    lower: bool
    metrics: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, str]:
        """Both keys."""
        return self.own, self.everyone

    @property
    def best(self) -> Callable[..., Any]:
        """`max` or `min`."""
        return min if self.lower else max


_OF_ALL = (
    "gate_global_share",
    "gate_global_share_everyone",
    "uplink_bytes",
    "downlink_bytes",
    "train_flops",
    "seconds",
    "trainable_parameters",
    "trainable_fraction",
    "peak_memory_bytes",
)
_ACCURACIES = ("accuracy_local", "accuracy_local_worst", "accuracy_global", "accuracy_base")
ACCURACY = Measure("accuracy_local", "accuracy_global", False, (*_ACCURACIES, *_OF_ALL))
LOSS = Measure(
    "nll_local",
    "nll_global",
    True,
    (
        *(
            f"{kind}_{of}"
            for kind in ("nll", "perplexity")
            for of in ("local", "local_worst", "global", "global_shared", "base")
        ),
        *_ACCURACIES,
        *_OF_ALL,
    ),
)


def of_text(result: Mapping[str, Any]) -> bool:
    """Whether it is the result of a run with `task: text`, or the config of one."""
    return result.get("task") == "text"


def measure_of(result: Mapping[str, Any]) -> Measure:
    """By what the run of this result, or of this config, is compared."""
    return LOSS if of_text(result) else ACCURACY
