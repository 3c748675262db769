"""The door for plug-ins, `fedms.register`, and what a worker process is told of them.

A kind of plug-in is one entry of `KINDS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import FunctionType
from typing import Any

from fedms.config import Config
from fedms.core.errors import ConfigError
from fedms.data.partition import RULES, register_partition
from fedms.federation.aggregation.aggregator import Aggregator
from fedms.federation.aggregation.registry import AGGREGATORS, register_aggregator
from fedms.federation.method import Method
from fedms.federation.methods import METHODS, register_method
from fedms.federation.prediction import PREDICTORS, Predictor, register_predictor
from fedms.model.families import FAMILIES, Family, register_family


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in."""

    title: str
    accepts: Callable[[Any], bool]
    known: Mapping[str, Any]
    """All of this kind by name, the built-in ones included."""
    add: Callable[[str, Any], None]
    has_name: bool
    """It has an attribute `name`. Otherwise `register` is given the name."""
    used: Callable[[Config], Iterable[str]] = lambda config: ()
    """Names that this config uses of it. Worker processes must know them."""
    plain: bool = False
    """It is plain data, so worker processes are sent its declaration."""


KINDS = (
    Kind(
        "method",
        lambda thing: isinstance(thing, Method),
        METHODS,
        lambda name, method: register_method(method),
        has_name=True,
        plain=True,
    ),
    Kind(
        "aggregator",
        lambda thing: isinstance(thing, Aggregator),
        AGGREGATORS,
        lambda name, aggregator: register_aggregator(aggregator),
        has_name=True,
        used=lambda config: (config.federation.aggregation, config.federation.robust),
    ),
    Kind(
        "predictor",
        lambda thing: isinstance(thing, Predictor),
        PREDICTORS,
        register_predictor,
        has_name=False,
        used=lambda config: (METHODS[config.method].predicts,) if config.method in METHODS else (),
    ),
    Kind(
        "model family",
        lambda thing: isinstance(thing, Family),
        FAMILIES,
        register_family,
        has_name=False,
        plain=True,
    ),
    Kind(
        "partition rule",
        lambda thing: isinstance(thing, FunctionType),
        RULES,
        register_partition,
        has_name=False,
        used=lambda config: (config.partition.rule,),
    ),
)

_homes: dict[tuple[str, str], set[str]] = {}
"""By kind and name: the modules that registered it. Built-in ones are not in here."""


def register(thing: Any, name: str | None = None) -> None:
    """Add a method, an aggregator, a predictor, a model family or a partition rule, which a config can then
    name.

    Args:
        thing: a `fedms.Method`, a `fedms.Aggregator`, a `fedms.Predictor`, a `fedms.Family`, or the function
            of a partition rule (`fedms.data.partition.Rule`).
        name: of a predictor, the value of a method's `predicts`; of a family, its `model_type` in the model's
            config.json; of a partition rule, the value of `partition.rule`. A method and an aggregator have a
            name of their own.

    Registering the same thing again changes nothing.

    Raises:
        ConfigError: the name is missing or belongs to something else, or the declaration contradicts itself.
    """
    kind = next((kind for kind in KINDS if kind.accepts(thing)), None)
    if kind is None:
        titles = ", ".join(each.title for each in KINDS)
        raise ConfigError(f"register: {type(thing).__name__} is none of these: {titles}")
    if kind.has_name and name is not None:
        raise ConfigError(f"register: a {kind.title} has its own name; leave out name={name!r:.80}")
    name = thing.name if kind.has_name else name
    if not isinstance(name, str) or not name:
        raise ConfigError(f"register: a {kind.title} needs a name: register(..., name='my-name')")
    key, there = (kind.title, name), kind.known.get(name)
    if there is None:
        kind.add(name, thing)
    elif not _same(there, thing):
        raise ConfigError(f"register: there is another {kind.title} of the name {name!r:.80}")
    if there is None or key in _homes:
        _homes.setdefault(key, set()).add(sys._getframe(1).f_globals.get("__name__", "__main__"))


def _same(one: Any, other: Any) -> bool:
    """Whether two things are equal. A function equals one that another import of the same file made."""
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        return one is other or (
            one.__code__ == other.__code__
            and one.__defaults__ == other.__defaults__
            and not one.__closure__
            and not other.__closure__
        )
    if is_dataclass(one) and type(one) is type(other):
        return all(_same(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
    return bool(one == other)


# worker processes


def declarations(config: Config) -> dict[str, Any]:
    """The plug-ins that are plain data, as values of JSON: what a worker process must `receive`.

    Raises:
        ConfigError: the config uses a function that none of its `plugins` registered.
    """
    for kind in KINDS:
        for name in () if kind.plain else kind.used(config):
            homes = _homes.get((kind.title, name))
            if homes and not any(_is_in(home, plugin) for home in homes for plugin in config.plugins):
                raise ConfigError(
                    f"{kind.title} {name!r:.80} was registered in {min(homes)}, "
                    "which worker processes do not import: "
                    "put it in a module and name that in `plugins`, or set engine.workers=1"
                )
    return {
        "methods": [m.to_dict() for name, m in METHODS.items() if ("method", name) in _homes],
        "families": {name: asdict(f) for name, f in FAMILIES.items() if ("model family", name) in _homes},
    }


def receive(declared: Mapping[str, Any]) -> None:
    """Register the plug-ins that another process declares, except those that this process knows already."""
    for values in declared["methods"]:
        if values["name"] not in METHODS:
            register_method(Method.from_dict(values))
    for name, values in declared["families"].items():
        if name not in FAMILIES:
            register_family(name, Family(**{key: _tuple(value) for key, value in values.items()}))


def _is_in(module: str, plugin: str) -> bool:
    return module == plugin or module.startswith(f"{plugin}.")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
