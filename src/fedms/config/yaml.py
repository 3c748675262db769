"""YAML files of configs. Every error is reported in one line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from fedms.core.errors import ConfigError, FedmsError
from fedms.core.formatting import excerpt

LARGEST_CONFIG = 2**20
"""Upper bound on the bytes of a config, and on its values after aliases: ten lines of aliases can stand for a
billion values."""


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number. A repeated key, and a value that contains itself, are errors."""

    def construct_document(self, node: yaml.Node) -> Any:
        """The value of a document, after a check of its size."""
        self.deep_construct = True  # so that a value that contains itself is an error
        if _size(node, {}) > LARGEST_CONFIG:
            raise yaml.constructor.ConstructorError(
                None, None, "its aliases stand for too many values", node.start_mark
            )
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, after a check for repeated keys."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {excerpt(key.value)} comes twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values in a node after aliases; a node that contains itself counts once."""
    if id(node) not in known:
        known[id(node)] = 1
        parts = (
            [each for pair in node.value for each in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
        )
        known[id(node)] += (
            0 if isinstance(node, yaml.ScalarNode) else sum(_size(each, known) for each in parts)
        )
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        FedmsError: the file cannot be read.
        ConfigError: the file is not YAML in UTF-8, is too large, or holds no mapping with text keys.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_CONFIG + 1)
    except OSError as error:
        raise FedmsError(f"{path}: cannot read the config: {error.strerror}") from None
    if len(data) > LARGEST_CONFIG:
        raise ConfigError(f"{path}: too large for a config, which has {LARGEST_CONFIG >> 20} MB at most")
    try:
        values = parse(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: a config is a mapping of keys to values")
    return values


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: the text is not valid.
    """
    return yaml.load(text, _Loader)


def parse(text: str, source: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: the text is not valid. The message names `source` as its origin.
    """
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or 'unreadable'}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{source}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # a text in the form of a date or number that does not exist
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
