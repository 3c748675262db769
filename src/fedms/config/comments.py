"""A config with every default filled in that keeps the comments of the file it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any

from fedms.config.schema import Config
from fedms.config.yaml import load_yaml


def commented(config: Config, text: str) -> str:
    """`Config.to_yaml` with the comments and the order of the keys in `text`, the YAML that a user wrote.

    Where that would read as another config, as with some aliases, it is `Config.to_yaml` as it is.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    plain, written = config.to_yaml(), StringIO()
    editor = YAML()
    editor.width = 4096  # lines stay as they are
    editor.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    try:
        held = editor.load(text)
        _fill(held, _quoted(config.model_dump(mode="json")), top=True)
        editor.dump(held, written)
        same = bool(load_yaml(written.getvalue()) == load_yaml(plain))
    except (YAMLError, TypeError, AttributeError, ValueError):
        return plain
    return written.getvalue() if same else plain


def _fill(held: Any, values: Mapping[str, Any], top: bool = False) -> None:
    """Set these values, and add those that are missing.

    They come first in a section: comments between two sections belong to the last key of the first.
    """
    held.fa.set_block_style()
    for place, (key, value) in enumerate((key, value) for key, value in values.items() if key not in held):
        held.insert(len(held) if top else place, key, value)
    for key, value in values.items():
        if isinstance(value, Mapping) and hasattr(held[key], "fa"):
            _fill(held[key], value)
        elif held[key] != value:
            held[key] = value


def _quoted(value: Any) -> Any:
    """The value with quotes around words that are none in every YAML, such as `on`."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, Mapping):
        return {_quoted(key): _quoted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_quoted(each) for each in value]
    if isinstance(value, str) and value.lower() in ("on", "off", "yes", "no", "y", "n"):
        return DoubleQuotedScalarString(value)
    return value
