"""What a sentence-transformers model says of itself: how tokens become one feature, and what precedes a text.

Its `modules.json` names the steps after the transformer. A model that was trained with the class token or the
last token must not be pooled by the mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt

POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
"""What fedms can do of a pooling module's modes."""
MODES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
"""The same, as newer versions write it in one word (`pooling_mode`)."""
WITHOUT_EFFECT = ("Transformer", "Pooling", "Normalize")
"""Modules that change nothing here: fedms scales every feature to one length."""

Read = Callable[[str], Any]
"""From the name of a JSON file of the model to its content; None where the model has no such file."""


@dataclass(frozen=True)
class SentenceModel:
    """How a sentence-transformers model makes one feature of a text."""

    pooling: str | None = None
    """`mean`, `cls` or `last`; None for a model that is no sentence-transformers model"""
    prompt: str = ""
    """What precedes every text"""


def reader(source: str) -> Read:
    """Reads JSON files of a model's folder, or of its name on the hub."""
    from transformers.utils import cached_file

    def read(file: str) -> Any:
        path = cached_file(
            source,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))

    return read


def read_sentence_model(name: str, read: Read) -> SentenceModel:
    """The model's own pooling and prompt.

    Args:
        name: `model.name`, for messages.
        read: reads its files.

    Raises:
        FedmsError: it makes its feature in a way that fedms does not know.
    """
    try:
        modules = read("modules.json")
        if modules is None:
            return SentenceModel()
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        other = next((kind for kind in kinds if kind not in WITHOUT_EFFECT), None)
        place = next(
            (module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None
        )
        pooling = {} if place is None else dict(read(f"{place}/config.json") or {})
        said = dict(read("config_sentence_transformers.json") or {})
        chosen = said.get("default_prompt_name")
        prompt = "" if chosen is None else str(said["prompts"][chosen])
    except (KeyError, TypeError, ValueError, OSError):
        raise FedmsError(f"model {name}: its modules.json or what it names cannot be read") from None
    if other is not None:
        what = f"its modules.json names the module {excerpt(other)}"
        raise FedmsError(f"model {name}: {what}; fedms runs none but {', '.join(WITHOUT_EFFECT)}")
    return SentenceModel(_pooling(name, pooling, bool(prompt)) if pooling else None, prompt)


def _pooling(name: str, said: dict[str, Any], prompted: bool) -> str:
    modes = said.get("pooling_mode")
    if modes is not None:
        found = [MODES.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes)]
    else:
        found = [
            POOLINGS.get(key, key)
            for key, on in said.items()
            if key.startswith("pooling_mode_") and on is True
        ]
    if len(found) != 1 or found[0] not in POOLINGS.values():
        told = " and ".join(map(str, found)) or "no mode"
        hint = "set model.pooling to use another one all the same"
        raise FedmsError(f"model {name}: it pools by {excerpt(told)}; fedms knows mean, cls and last; {hint}")
    if prompted and said.get("include_prompt") is False:
        raise FedmsError(f"model {name}: it leaves its prompt out of the pooling, which fedms cannot")
    return str(found[0])
