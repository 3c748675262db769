"""Dotted keys of overrides and variants, and pydantic's errors as one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedms.config.yaml import parse
from fedms.core.errors import ConfigError
from fedms.core.formatting import did_you_mean, excerpt


def overridden(values: dict[str, Any], text: str) -> dict[str, Any]:
    """The mapping after one `KEY=VALUE` of the command line."""
    key, equals, value = text.partition("=")
    option = f"--set {excerpt(text)}"
    if not equals or not key:
        raise ConfigError(f"{option}: must be KEY=VALUE, for example seed=1 or model.name=minilm")
    return placed(values, key, parse(value, option), option)


def placed(values: dict[str, Any], key: str, value: Any, source: str) -> dict[str, Any]:
    """The mapping with the value at this dotted key. A message names `source` as the value's origin."""
    out = dict(values)
    node = out
    *parents, last = key.split(".")
    for parent in parents:
        child = node.get(parent)
        if child is not None and not isinstance(child, dict):
            raise ConfigError(f"{source}: {excerpt(parent)} is a value, not a section")
        node[parent] = dict(child or {})
        node = node[parent]
    node[last] = value
    return out


def tuples(value: Any) -> Any:
    """The value with tuples in place of lists, because a config is immutable."""
    if isinstance(value, Mapping):
        return {key: tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    return value


def first_wrong(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first error in one line, with the key and the allowed values."""
    first = error.errors(include_url=False)[0]
    key = ".".join(excerpt(str(part)) for part in first["loc"])
    kind, message, given = first["type"], first["msg"], first.get("input")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if kind == "extra_forbidden":
        allowed = _siblings(first["loc"], schema)
        guess = did_you_mean(str(first["loc"][-1]), allowed)
        return f"{key}: unknown key; allowed: {', '.join(allowed)}{guess}{more}"
    if kind == "value_error":
        text = message.removeprefix("Value error, ")
        return f"{key}.{text}{more}" if key else f"{text}{more}"
    return f"{key}: {message[0].lower()}{message[1:]}, not {excerpt(repr(given))}{more}"


def _siblings(location: tuple[int | str, ...], schema: type[BaseModel]) -> list[str]:
    section: Any = schema
    for part in location[:-1]:
        if isinstance(part, int):
            section = get_args(section)[0]
        elif part in getattr(section, "model_fields", {}):
            section = section.model_fields[part].annotation
    return list(getattr(section, "model_fields", {}))
