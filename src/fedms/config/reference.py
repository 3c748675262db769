"""Every key of a config with its type, default and meaning, read from where it is declared.

`fedms config`, docs/config.md and a config's template are made from it.
"""

from __future__ import annotations

import json
import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedms.config.schema import Config
from fedms.core.errors import ConfigError
from fedms.core.formatting import did_you_mean

WIDTH = 100
"""Characters of a line of comment in a template."""

BOOLEANS = ("on", "off", "yes", "no")
"""Words that YAML reads as true or false, so that a key of this name needs quotes."""


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: dotted, such as `gate.prior`.
        kind: what it accepts, in words.
        default: as in YAML.
        meaning: its docstring, on one line.
    """

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """A section with its keys; the first one has no name and holds the keys of no section."""

    name: str
    meaning: str
    keys: tuple[Key, ...]


def groups() -> list[Group]:
    """All sections, in the order in which they are declared."""
    fields = Config.model_fields
    plain = {name: field for name, field in fields.items() if not _is_section(field)}
    found = [Group("", "The experiment as a whole.", tuple(_keys(plain, "")))]
    for name, field in fields.items():
        if _is_section(field):
            section: type[BaseModel] = field.annotation  # type: ignore[assignment]
            found.append(Group(name, _one_line(field), tuple(_keys(section.model_fields, f"{name}."))))
    return found


def all_keys() -> list[Key]:
    """All keys."""
    return [key for group in groups() for key in group.keys]


def named(name: str) -> list[Key]:
    """The key of this name, or the keys of the section of this name.

    Raises:
        ConfigError: there is none.
    """
    found = [key for key in all_keys() if name in (key.name, key.name.partition(".")[0])]
    if not found:
        known = [key.name for key in all_keys()]
        raise ConfigError(f"{name}: no such key; `fedms config` lists all{did_you_mean(name, known)}")
    return found


def template(values: Mapping[str, Any] | None = None) -> str:
    """A YAML file with every key and its meaning; what keeps its default is commented out.

    Args:
        values: dotted keys that stand in the file.
    """
    given = values or {}
    lines = ["# Every key, its meaning and its default. Remove the `#` before a key to change it."]
    for group in groups():
        used = any(key.name in given for key in group.keys)
        lines += ["", *_comment(group.meaning, "")]
        if group.name:
            lines.append(f"{'' if used else '# '}{group.name}:")
        indent = "  " if group.name else ""
        for key in group.keys:
            lines += _comment(f"{key.meaning} ({key.kind})", indent)
            value = _as_yaml(given[key.name]) if key.name in given else key.default
            last = key.name.split(".")[-1]
            quoted = f'"{last}"' if last in BOOLEANS else last
            lines.append(f"{indent}{'' if key.name in given else '# '}{quoted}: {value}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The reference as a page."""
    parts = [PAGE]
    for group in groups():
        parts.append(f"\n## {f'`{group.name}`' if group.name else 'Top level'}\n\n{group.meaning}\n")
        parts.append("| key | default | accepts | meaning |\n|---|---|---|---|")
        for key in group.keys:
            cells = (f"`{key.name}`", f"`{key.default}`", _cell(key.kind), _cell(key.meaning))
            parts.append(f"| {' | '.join(cells)} |")
    return "\n".join(parts) + "\n"


PAGE = """# All keys of a config

This page is the output of `fedms config --markdown`; a test holds it. In a terminal, `fedms config` lists
the keys, `fedms config gate.prior` explains one, and `fedms config --yaml` writes a file of all keys with
comments.

An editor completes keys in a file that begins with a line for the YAML language server, after `fedms config
--schema > fedms.schema.json`:

    # yaml-language-server: $schema=fedms.schema.json
"""


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _keys(fields: Mapping[str, FieldInfo], prefix: str) -> Iterator[Key]:
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        limits = [text for text in map(_limit, field.metadata) if text]
        kind = ", ".join([_kind(field.annotation), *limits])
        yield Key(f"{prefix}{name}", kind, _as_yaml(default), _one_line(field))


def _as_yaml(value: Any) -> str:
    """A value as JSON that YAML reads alike: to YAML 1.1 `1e-05` is a text, and `1.0e-05` a number."""
    return re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value))


def _kind(annotation: Any) -> str:
    """`int`, `null`, "'a' or 'b'": what a type accepts, in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_kind, inside))
    if origin is tuple:
        return f"list of {_kind(inside[0])}"
    if origin is dict:
        return f"mapping of names to {_kind(inside[1])}"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    if annotation in words:
        return words[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"mapping of {', '.join(annotation.model_fields)}"
    return "value"


def _limit(constraint: Any) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "pattern": "in the form"}
    return ", ".join(
        f"{word} {getattr(constraint, name)}"
        for name, word in words.items()
        if getattr(constraint, name, None) is not None
    )


def _one_line(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _comment(text: str, indent: str) -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(text, WIDTH, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
