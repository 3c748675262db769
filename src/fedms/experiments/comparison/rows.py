"""The rows of a comparison: methods, and variants of methods. No data or model is loaded here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedms.config import Config, changed, load_config
from fedms.core.errors import ConfigError
from fedms.federation.method import Method
from fedms.federation.methods import METHODS, find


@dataclass(frozen=True)
class Row:
    """A method, and the keys in which it differs from the config."""

    name: str
    method: Method
    overrides: dict[str, Any]
    """Dotted keys; `method` is not among them."""

    def experiment(self, config: Config, seed: int, tuned: dict[str, Any]) -> Config:
        """The config of this row with a seed and tuned keys.

        Raises:
            ConfigError: the keys do not fit together.
        """
        keys = {"seed": seed, "method": self.method.name} | self.overrides | tuned
        if config.compare.tune:
            keys["evaluation.validation"] = True  # tuning reads the scores on validation data
        try:
            return self.method.configure(changed(config, keys))
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None

    def grid(self, config: Config) -> list[dict[str, Any]]:
        """Every combination of candidates for keys that affect this row; at least one, maybe empty."""
        keys = [
            key for key in config.compare.tune if key not in self.overrides and _matters(key, self.method)
        ]
        return [
            dict(zip(keys, values, strict=True))
            for values in itertools.product(*(config.compare.tune[key] for key in keys))
        ]


def _matters(key: str, method: Method) -> bool:
    section = key.partition(".")[0]
    if key == "training.local_learning_rate":
        return any(stage.expert == "local" for stage in method.stages)
    if key == "training.head_learning_rate":
        return any(stage.expert == "global" and "head" in stage.trains for stage in method.stages)
    if key == "training.learning_rate":
        return any(stage.expert == "global" and {*stage.trains} - {"head"} for stage in method.stages)
    if section in ("training", "lora", "activation", "federation"):
        return bool(method.stages)
    return method.gate is not None if section == "gate" else True


def rows(config: Config) -> list[Row]:
    """The rows that `config.compare` names, in order: methods, then variants.

    Raises:
        ConfigError: a method is not known, or a variant has the name of a method.
    """
    compare = config.compare
    named = compare.methods
    if named is None:  # all that the task lets run
        named = tuple(name for name in METHODS if config.task != "text" or not METHODS[name].no_text)
    made = [Row(name, _find(name, "compare.methods"), {}) for name in named]
    for name, keys in compare.variants.items():
        if name in METHODS:
            raise ConfigError(f"compare.variants: {name!r} is a method's name; name the variant otherwise")
        method = _find(str(keys.get("method", config.method)), f"compare.variants.{name}.method")
        made.append(Row(name, method, {key: value for key, value in keys.items() if key != "method"}))
    if compare.baseline not in METHODS and compare.baseline not in compare.variants:
        allowed = ", ".join([*METHODS, *compare.variants])
        raise ConfigError(f"compare.baseline: {compare.baseline!r} is not known; allowed: {allowed}")
    for row in made:
        for tuned in row.grid(config):
            row.experiment(config, compare.seeds[0], tuned)
    return made


def baseline(config: Config, compared: Sequence[Row]) -> str:
    """Name of the row with which the others are compared."""
    names = [row.name for row in compared]
    return config.compare.baseline if config.compare.baseline in names else names[0]


def narrowed(config: Config, methods: Sequence[str] | None, seeds: Sequence[int] | None) -> Config:
    """The config with its comparison reduced to these rows (methods or variants, by name) and these seeds.

    Raises:
        ConfigError: a name is not known, or a row or seed is repeated.
    """
    compare = config.compare.model_dump()
    if methods is not None:
        known = [*METHODS, *config.compare.variants]
        for name in methods:
            if name not in known:
                raise ConfigError(f"compare.methods: {name!r} is not known; allowed: {', '.join(known)}")
        compare["methods"] = tuple(name for name in methods if name in METHODS)
        compare["variants"] = {name: config.compare.variants[name] for name in methods if name not in METHODS}
        if config.compare.baseline not in known[: len(METHODS)] + list(compare["variants"]):
            del compare["baseline"]
    if seeds is not None:
        compare["seeds"] = tuple(seeds)
    return load_config(config.model_dump() | {"compare": compare})


def _find(name: str, where: str) -> Method:
    try:
        return find(name)
    except ConfigError as error:
        raise ConfigError(f"{where}{str(error).removeprefix('method')}") from None
