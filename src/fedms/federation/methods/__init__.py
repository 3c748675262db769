"""The methods that a config can name, each a short declaration."""

from __future__ import annotations

from dataclasses import replace

from fedms.config import Config
from fedms.core.errors import ConfigError
from fedms.core.formatting import did_you_mean
from fedms.federation.aggregation.registry import AGGREGATORS
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


def register_method(method: Method) -> None:
    """Let the config name this method.

    Raises:
        ConfigError: another method has the name, a word is not known, or the words contradict each other.
    """
    if method.name in METHODS:
        raise ConfigError(f"method: the name {method.name!r:.80} is taken already")
    method.check()
    METHODS[method.name] = method


def find(name: str) -> Method:
    """The method of this name; ConfigError where it is not known."""
    if name not in METHODS:
        guess = did_you_mean(name, METHODS)
        raise ConfigError(f"method: {name!r} is not known; allowed: {', '.join(METHODS)}{guess}")
    return METHODS[name]


def of(config: Config) -> Method:
    """The experiment's method.

    An aggregator that freezes A (arXiv 2403.12313) removes A from every stage that would share both matrices.
    """
    method = find(config.method)
    if config.task == "text":  # the model's own head stays frozen, and tokens are the gate's evidence
        method = replace(
            method, stages=tuple(stage.without("head").without("gate") for stage in method.stages)
        )
    if not AGGREGATORS[config.federation.aggregation].freezes_a:
        return method
    return replace(
        method,
        stages=tuple(stage.without("A") if {*LORA} <= {*stage.shares} else stage for stage in method.stages),
    )
