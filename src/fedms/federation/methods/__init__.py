"""The methods that can be named, each a short declaration."""

from __future__ import annotations

from dataclasses import replace

from fedms.config import Config
from fedms.core.errors import ConfigError
from fedms.federation.method import LORA, Method
from fedms.federation.methods import fedavg, fedms, frozen, mixtures, partly_shared, personal

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        fedms.METHOD,
        *fedavg.METHODS,
        *personal.METHODS,
        *partly_shared.METHODS,
        *mixtures.METHODS,
        *frozen.METHODS,
    )
}


def find(name: str) -> Method:
    """The method of that name; ConfigError where there is none."""
    if name not in METHODS:
        raise ConfigError(f"method: {name!r} is not known; allowed: {', '.join(METHODS)}")
    return METHODS[name]


def of(config: Config) -> Method:
    """The experiment's method. With aggregation `freeze-a`, no stage trains an A that it would share beside B (arXiv 2403.12313)."""
    method = find(config.method)
    if config.federation.aggregation != "freeze-a":
        return method
    return replace(
        method,
        stages=tuple(stage.without("A") if {*LORA} <= {*stage.shares} else stage for stage in method.stages),
    )
