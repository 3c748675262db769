"""The methods that can be named, each a short declaration."""

from __future__ import annotations

from fedms.errors import ConfigError
from fedms.federation.method import Method
from fedms.federation.methods import fedavg, fedms, local, mixture_constant, statistics

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        fedms.METHOD,
        fedavg.METHOD,
        fedavg.SAL,
        fedavg.FINETUNE,
        local.METHOD,
        mixture_constant.METHOD,
        statistics.METHOD,
    )
}


def find(name: str) -> Method:
    """The method of that name; ConfigError where there is none."""
    if name not in METHODS:
        raise ConfigError(f"method: {name!r} is not known; allowed: {', '.join(METHODS)}")
    return METHODS[name]
