"""The global expert's start from a PEFT adapter (`model.adapter`)."""

from __future__ import annotations

import re
from pathlib import Path

from fedms.config import Config
from fedms.core.errors import ConfigError
from fedms.core.formatting import excerpt
from fedms.federation.identity import ModelIdentity
from fedms.federation.methods import of
from fedms.model.arrays import Arrays
from fedms.model.backbone import Backbone
from fedms.model.checkpoints import MINILM_HUB_NAME, looks_local
from fedms.model.peft import CONFIG, declared_base, from_peft


def adapter_pairs(config: Config, backbone: Backbone) -> Arrays:
    """The adapter's LoRA pairs, by their names within an expert; empty without `model.adapter`.

    The adapter's head is not used: the task head starts as `head.kind` says.

    Raises:
        ConfigError: the method trains and averages no whole pairs in a global stage, ranks differ, or the
            adapter belongs to another model.
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
    folder = Path(adapter).expanduser()
    _check_base(folder, config, backbone)
    arrays = from_peft(folder, backbone, config.lora)
    pairs = {name: array for name, array in arrays.items() if name.startswith("block.")}
    if not pairs:
        raise ConfigError(f"model.adapter: {adapter} has no LoRA pair")
    ranks = {array.shape[0] for name, array in pairs.items() if name.endswith(".lora_A")}
    if other := ranks - {config.lora.rank}:
        raise ConfigError(f"lora.rank: must be {min(other)}, the rank of {adapter}, not {config.lora.rank}")
    return pairs


def _check_base(folder: Path, config: Config, backbone: Backbone) -> None:
    """Raise ConfigError if the adapter was made for another model than the run's.

    An adapter that fedms wrote knows the digest of that model's weights in float32. Of others, and in
    another precision, the names are compared.
    """
    base, weights = declared_base(folder)
    model = config.model.name
    made = f"model.adapter: {config.model.adapter} was made for {excerpt(base) if base else 'a model'},"
    if weights is not None and config.precision == "float32":
        if weights != ModelIdentity.of(backbone).weights:
            raise ConfigError(f"{made} whose weights are not those of model.name {model}")
    elif base is not None and not _same_name(base, model):
        raise ConfigError(
            f"{made} and model.name is {model}; if both are one model, write that name into {CONFIG}"
        )


def _same_name(one: str, other: str) -> bool:
    """Whether two names or folders can be of the same model."""
    first, second = (_hub_name(each) for each in (one, other))
    if looks_local(one) or looks_local(other) or "/" not in first or "/" not in second:
        first, second = (each.rpartition("/")[2] for each in (first, second))
    return first.casefold() == second.casefold()


def _hub_name(name: str) -> str:
    """The name on the hub that a folder of its cache has, else the name itself."""
    cached = re.search(r"models--([^/]+)--([^/]+)/snapshots/", name.replace("\\", "/"))
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return MINILM_HUB_NAME if name == "minilm" else name.replace("\\", "/").rstrip("/")
