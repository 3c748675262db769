"""Samples of `task: text`: passages that are learned as a whole, or answers to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedms.config.data import DataConfig, template_columns
from fedms.data.columns import TEXT_NAMES, values
from fedms.data.table import Table


@dataclass(frozen=True)
class Passage:
    """A text in two parts. The loss is on the answer."""

    prompt: str | None
    """None where the whole text is learned"""
    answer: str

    def encode(self) -> bytes:
        """Bytes that no other passage has."""
        return self.answer.encode() if self.prompt is None else f"{self.prompt}\0{self.answer}".encode()


def passages(tables: Sequence[Table], config: DataConfig) -> list[Passage]:
    """The passages over all tables, by the templates, or of the column of texts.

    Raises:
        FedmsError: a column does not exist, or a row has no value in it.
    """
    if config.prompt is None or config.answer is None:
        lower = {name.lower(): name for name in reversed([*tables[0].scalars])}
        found = next((lower[name] for name in TEXT_NAMES if name in lower), "text")
        return [Passage(None, text) for text in values(tables, config.text or found, "text")]
    columns = {
        name: values(tables, name, what)
        for what, template in (("prompt", config.prompt), ("answer", config.answer))
        for name in template_columns(template)
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [Passage(config.prompt.format(**row), config.answer.format(**row)) for row in rows]


ONE_CLASS = "text"
"""Of samples without a label"""
