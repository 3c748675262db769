"""The sections `data` and `partition` of a config: the samples, and who holds them."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedms.config.sections import Section
from fedms.core.registry import Names


def template_columns(template: str) -> list[str]:
    """The columns in the braces of a template; none where it is no template."""
    try:
        parts = [
            (name, more, kind) for _, name, more, kind in Formatter().parse(template) if name is not None
        ]
    except ValueError:  # a single brace
        return []
    return [name for name, _, _ in parts] if all(name and not (m or k) for name, m, k in parts) else []


class DataConfig(Section):
    """The data set and its columns."""

    source: str = "assistant"
    """`assistant` (the embedded corpus), a name for Hugging Face `datasets` (`name:subset` for one of several
    subsets), a file (CSV, TSV, JSONL, Parquet) or a folder."""
    text: str | None = None
    """Column with the text; default: found by name (`text`, `sentence`, ...)."""
    image: str | None = None
    """Column with the image; default: found by type."""
    label: str | None = None
    """Column with the class; default: found by name (`label`, `category`, `intent`, ...)."""
    prompt: str | None = None
    """With `task: text`: what precedes the answer, with columns in braces, such as `Question: {question}`.
    The loss is on the answer alone. If the tokenizer has a chat template, this is the user's turn."""
    answer: str | None = None
    """With `data.prompt`: the answer, with columns in braces."""
    template: str | None = None
    """What the model reads of a text, with `{text}` in it, such as `Message: {text} Intent:`; default: the
    text alone. Of a text that is too long the end is cut, and what follows it in the template stays."""
    classes: tuple[str, ...] = ()
    """Names of all classes, in the order of the labels; a label that is none of them is an error. Empty:
    those of the training samples, sorted."""
    limit: int | None = Field(None, ge=1)
    """Largest number of samples of each split, drawn with the seed; default: all samples."""
    separator: str | None = None
    """One character between the values of CSV and TSV files, or `tab`; default: `,` in .csv, a tab in .tsv.
    """
    encoding: str | None = None
    """Encoding of CSV, TSV and JSON files, such as `cp1252` or `utf-16`; default: UTF-8."""

    @field_validator("prompt", "answer")
    @classmethod
    def _check_template(cls, value: str | None) -> str | None:
        if value is not None and not template_columns(value):
            raise PydanticCustomError(
                "template", "Input should be a text with columns in braces, such as `Question: {{question}}`"
            )
        return value

    @field_validator("template")
    @classmethod
    def _check_frame(cls, value: str | None) -> str | None:
        if value is not None and template_columns(value) != ["text"]:
            raise PydanticCustomError(
                "template", "Input should be a text with one `{{text}}`, such as `Message: {{text}} Intent:`"
            )
        return value

    @property
    def around(self) -> tuple[str, str]:
        """What the model reads before a text and after it."""
        before, _, after = (self.template or "{text}").format(text="\0").partition("\0")
        return before, after

    @model_validator(mode="after")
    def _check_templates(self) -> DataConfig:
        if (self.prompt is None) != (self.answer is None):
            raise ValueError("prompt: is needed with `answer`, and `answer` with `prompt`")
        if self.prompt is not None and (self.text or self.image):
            raise ValueError("prompt: takes the place of `text` and `image`, which must be null")
        return self

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        plain = all(name and name == name.strip() for name in value)
        if value and (len(value) < 2 or len(set(value)) < len(value) or not plain):
            raise PydanticCustomError(
                "classes", "Input should be at least two different names, without outer blanks"
            )
        return value

    @field_validator("separator")
    @classmethod
    def _check_separator(cls, value: str | None) -> str | None:
        if value is not None and value not in ("tab", "\\t") and (len(value) != 1 or value in '"\r\n\0'):
            raise PydanticCustomError("separator", "Input should be one character, or `tab`")
        return value

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str | None) -> str | None:
        try:
            known = value is None or "text".encode(value).decode(value) == "text"
        except (LookupError, ValueError):  # UnicodeError is a ValueError
            known = False
        if not known:
            raise PydanticCustomError(
                "encoding", "Input should be a text encoding, such as `cp1252` or `utf-16`"
            )
        return value


PARTITION_RULES = Names("partition.rule", "dirichlet", "classes", "column", "equal", "files")
"""What `partition.rule` accepts. `fedms.data.partition` holds the functions, and adds the names of plug-ins
here."""


USUAL_CLIENTS = 20
"""Number of clients by default"""


class PartitionConfig(Section):
    """The assignment of samples to clients and splits."""

    clients: int | None = Field(None, ge=1, le=1_000_000)
    """Number of clients; default: 20, or with rule `files` as many as the source holds."""
    rule: str = "dirichlet"
    """`dirichlet` (label skew), `classes` (a few classes per client), `column` (by domain, user or the like),
    `equal`, `files` (`data.source` is a folder, and each file or sub-folder in it is one client of that name;
    README.md says what it may hold), or the name of a plug-in."""
    alpha: float | None = Field(0.1, gt=0)
    """Concentration of the Dirichlet distribution; a small value gives a strong skew. With rule `column` it
    is the skew among the clients of one value, and null is no skew."""
    classes_per_client: int = Field(2, ge=1)
    """Classes of each client, for rule `classes`."""
    column: str | None = None
    """For rule `column`: the column that assigns samples to clients. Each of its values gets `clients` /
    values clients."""
    validation: float = Field(0.1, gt=0, lt=0.5)
    """Share of a client's training data that becomes its validation data."""
    test: float = Field(0.2, gt=0, lt=0.5)
    """Share of the samples that becomes test data, if the source has no test split."""
    min_samples: int = Field(10, ge=3)
    """Fewest samples of a client for train and validation together. An allocation with fewer is drawn
    again."""

    @model_validator(mode="before")
    @classmethod
    def _usual_number(cls, values: object) -> object:
        """With the usual number of clients, where only the source could know another."""
        if not isinstance(values, Mapping) or values.get("rule") == "files" or values.get("clients"):
            return values
        return {**values, "clients": USUAL_CLIENTS} if values.get("clients") is None else values

    @field_validator("rule")
    @classmethod
    def _check_rule(cls, value: str) -> str:
        if value not in PARTITION_RULES:
            raise PydanticCustomError("rule", "Input should be {allowed}", {"allowed": str(PARTITION_RULES)})
        return value
