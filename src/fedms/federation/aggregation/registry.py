"""The aggregators that a config can name. A new one is one file and its declaration here, or a plug-in."""

from __future__ import annotations

from fedms.config.federation import AGGREGATIONS, ROBUST_MEANS, FederationConfig
from fedms.core.errors import ConfigError
from fedms.federation.aggregation import mean, products, robust
from fedms.federation.aggregation.aggregator import Aggregator

AGGREGATORS: dict[str, Aggregator] = {
    each.name: each for each in (*mean.AGGREGATORS, *products.AGGREGATORS, *robust.AGGREGATORS)
}
"""By name: the values of `federation.aggregation`, and those of `federation.robust`."""


def register_aggregator(aggregator: Aggregator) -> None:
    """Let the config name this aggregator.

    Raises:
        ConfigError: another aggregator has the name.
    """
    if aggregator.name in AGGREGATORS:
        raise ConfigError(f"federation.aggregation: the name {aggregator.name!r} is taken already")
    (ROBUST_MEANS if aggregator.robust else AGGREGATIONS).add(aggregator.name)
    AGGREGATORS[aggregator.name] = aggregator


def aggregator_for(config: FederationConfig, products: bool) -> Aggregator:
    """The aggregator of a stage. `products`: the stage shares A and B, so their product can be averaged."""
    chosen = AGGREGATORS[config.aggregation]
    if chosen.products and products:
        return chosen
    if config.robust != "none":
        return AGGREGATORS[config.robust]
    return AGGREGATORS["average"] if chosen.products else chosen
