"""What the columns of a source are for: text or picture, label, and the rest."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt, plural
from fedms.core.paths import alike
from fedms.data.images import Place
from fedms.data.table import Table

TEXT_NAMES = ("text", "sentence", "utterance", "content", "query")
LABEL_NAMES = ("label", "category", "intent", "class", "target", "fine_label", "label_text")
WHOLE_AS_FLOAT = re.compile(r"(-?\d+)\.0+")
"""A whole number as programs write a column of floats: `1.0`"""


def roles(config: DataConfig, table: Table) -> tuple[str | None, str | None, str]:
    """The columns of image, text (one of the two is None) and label.

    Raises:
        FedmsError: a column cannot be found by its name, or one column would have two roles.
    """

    def find(key: str, names: Sequence[str], other: str | None) -> str:
        found: str | None = None
        for usable in (
            [*table.scalars, *table.mixed],
            table.nested,
        ):  # a column of lists only if no other fits
            lower = {name.lower(): name for name in reversed([*usable]) if name != other}
            found = found or next((lower[name] for name in names if name in lower), None)
        if found is None:
            raise FedmsError(
                f"{config.source}: no column found for data.{key}, name it there; columns: {table.names}"
            )
        return found

    if config.text and config.image:
        raise FedmsError(
            f"{config.source}: data.text and data.image are both given, but a sample is one of the two"
        )
    image, text = config.image, config.text
    if not image and not text and len(table.images) > 1:
        raise FedmsError(
            f"{config.source}: several columns hold images, name one in data.image; columns: {table.names}"
        )
    if not image and not text and table.images:
        image = next(iter(table.images))
    if not image and not text:
        text = find("text or data.image", TEXT_NAMES, config.label)
    label = config.label or find("label", LABEL_NAMES, text)
    if label == text:
        raise FedmsError(
            f"{config.source}: column {label!r} cannot be both text and label: name another in data.text or "
            f"data.label; columns: {table.names}"
        )
    return image, text, label


def values(tables: Sequence[Table], name: str, what: str) -> list[str]:
    """A column over all tables.

    Raises:
        FedmsError: no such column, a row without a value, or with more than one.
    """
    found: list[str] = []
    for table in tables:
        if name in table.nested:
            row, kind = table.nested[name]
            raise FedmsError(
                f"{table.where}: row {row} has {kind} for its {what} (column {name!r}): each sample needs "
                f"one value; mend it, or name another column in data.{what}"
            )
        if name not in table.scalars:
            raise FedmsError(f"{table.where}: no column {name!r} for the {what}; columns: {table.names}")
        for row, value in enumerate(table.scalars[name], 1):
            if value is None or not value.strip():
                raise FedmsError(f"{table.where}: row {row} has no {what} (column {name!r})")
            found.append(value)
    return found


def places(tables: Sequence[Table], name: str) -> list[Place]:
    """Where the pictures of a column are, over all tables."""
    for table in tables:
        if name not in table.images:
            raise FedmsError(f"{table.where}: no column {name!r} with images; columns: {table.names}")
    return [(opener, row, table.where) for table in tables for row, opener in enumerate(table.images[name])]


def same_value(found: Sequence[str]) -> list[str]:
    """The values with one spelling each: outer blanks go, and `1.0` becomes `1` where both are there."""
    stripped = [value.strip() for value in found]
    there = set(stripped)
    whole = {value: match[1] for value in there if (match := WHOLE_AS_FLOAT.fullmatch(value))}
    if there.isdisjoint(whole.values()):
        return stripped
    return [whole.get(value, value) for value in stripped]


def check_declared(tables: Sequence[Table], found: Sequence[str], declared: Collection[str]) -> None:
    """Raise FedmsError where a label over all tables is not a declared class."""
    place = next((place for place, value in enumerate(found) if value not in declared), None)
    if place is None:
        return
    value = excerpt(repr(found[place]))
    for table in tables:
        if place < table.rows:
            break
        place -= table.rows
    raise FedmsError(f"{table.where}: row {place + 1} has the label {value}, which is not in data.classes")


def about_labels(source: str, found: Sequence[str], spelled: Sequence[str]) -> list[str]:
    """Lines about labels that were spelled in several ways."""
    changed = sum(before != after for before, after in zip(found, spelled, strict=True))
    lines = []
    if changed:
        first = next((b, a) for b, a in zip(found, spelled, strict=True) if b != a)
        lines.append(
            f"{source}: {plural(changed, 'label')} rewritten, so that one class has one spelling: "
            f"{excerpt(repr(first[0]))} is read as {excerpt(repr(first[1]))}"
        )
    if same := alike(sorted(set(spelled))):
        lines.append(
            f"{source}: {excerpt(repr(same[0]))} and {excerpt(repr(same[1]))} are two classes, "
            "though they differ in case or in how a letter is encoded alone"
        )
    return lines


def classes(
    source: str, train: set[str], test: set[str], declared: Collection[str], alone: bool = False
) -> tuple[str, ...]:
    """The classes that training samples have: in their declared order, the rest sorted.

    Args:
        alone: these are all the samples of one client, which need not have every class.

    Raises:
        FedmsError: a class of the test split has no training sample, or there is one class alone.
    """
    if alone:
        return (*sorted(train | test),)
    if test - train:
        raise FedmsError(
            f"{source}: class {min(test - train)!r} stands in the test split, but no training sample has it"
        )
    names = (*(name for name in declared if name in train), *sorted(train.difference(declared)))
    if len(names) < 2:
        raise FedmsError(
            f"{source}: every sample is of the class {names[0]!r}; at least 2 classes are needed"
        )
    return names
