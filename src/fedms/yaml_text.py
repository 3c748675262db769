"""YAML as people write it, read with one line for whatever is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from fedms.errors import ConfigError, FedmsError

LONGEST_SHOWN = 80
"""Characters of a key or value at most in a message."""


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as everybody expects, no key comes twice, and nothing holds itself."""

    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # refuses what holds itself, which would be built otherwise
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {plain(key.value)} comes twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FedmsError(f"{path}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    values = parse(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: a config is a mapping of keys to values")
    return values


def parse(text: str, whose: str) -> Any:
    """The value that a YAML text says; `whose` it is, for the message."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{whose}: not valid YAML{where}: {getattr(error, 'problem', None) or 'unreadable'}") from None
    except RecursionError:
        raise ConfigError(f"{whose}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # what is written like a date or a number, but is none
        raise ConfigError(f"{whose}: not valid YAML: {error}") from None


def plain(text: str) -> str:
    """On one line, and not too long to be in one."""
    line = text if text.isprintable() else repr(text)
    return line if len(line) <= LONGEST_SHOWN else f"{line[:LONGEST_SHOWN]}..."
