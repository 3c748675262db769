"""The global expert's start from a PEFT adapter (`model.adapter`)."""

from __future__ import annotations

from pathlib import Path

from fedms.config import Config
from fedms.core.errors import ConfigError
from fedms.federation.methods import of
from fedms.model.arrays import Arrays
from fedms.model.backbone import Backbone
from fedms.model.peft import from_peft


def adapter_pairs(config: Config, backbone: Backbone) -> Arrays:
    """The adapter's LoRA pairs, by their names within an expert; empty without `model.adapter`.

    The adapter's head is not used: the task head starts as `head.kind` says.

    Raises:
        ConfigError: the method trains and averages no whole pairs in a global stage, or ranks differ.
        FedmsError: the adapter cannot be read, or does not fit the model or `lora.targets`.
    """
    adapter = config.model.adapter
    if adapter is None:
        return {}
    stages = of(config).stages
    if not stages or stages[0].expert != "global" or not stages[0].averages_products:
        raise ConfigError(
            f"model.adapter: method {config.method} has no global stage that trains and averages A and B"
        )
    arrays = from_peft(Path(adapter).expanduser(), backbone, config.lora)
    pairs = {name: array for name, array in arrays.items() if name.startswith("block.")}
    if not pairs:
        raise ConfigError(f"model.adapter: {adapter} has no LoRA pair")
    ranks = {array.shape[0] for name, array in pairs.items() if name.endswith(".lora_A")}
    if other := ranks - {config.lora.rank}:
        raise ConfigError(f"lora.rank: must be {min(other)}, the rank of {adapter}, not {config.lora.rank}")
    return pairs
