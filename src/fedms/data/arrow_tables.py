"""Tables in Arrow's memory layout: Parquet files, saved `datasets` folders, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.data.images import Opener, open_bytes
from fedms.data.table import Table, brief


def read_parquet(path: Path, config: DataConfig) -> Table:
    """A Parquet file. Columns of types that `datasets` does not know are left out."""
    import datasets
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
        known = [name for name in schema.names if _is_known(schema, name)]
        table = from_datasets(str(path), datasets.Dataset(parquet.read_table(path, columns=known)))
    except FedmsError:
        raise
    except Exception as error:  # Arrow's, and those of `datasets` for what it has noted in the file
        raise FedmsError(f"{path}: not a readable Parquet file: {brief(error)}") from None
    for name in schema.names:
        if name not in known:
            table.nested[name] = 1, f"a value of the type {brief(schema.field(name).type)}"
    return table


def _is_known(schema: Any, name: str) -> bool:
    """Whether `datasets` can represent a column."""
    import datasets
    import pyarrow as pa

    try:
        datasets.Features.from_arrow_schema(pa.schema([schema.field(name)]))
    except Exception:  # whatever it says of a type that it does not know
        return False
    return True


def from_datasets(where: str, data: Any) -> Table:
    """A `datasets.Dataset` as a table: scalars as text, classes by their names, images not yet decoded."""
    import datasets

    data = data.with_format(None)
    table = Table(where, len(data))
    for name, feature in data.features.items():
        column = data.select_columns([name])
        if openers := _pictures(where, column, name, feature):
            table.images[name] = openers
        elif isinstance(feature, datasets.ClassLabel) and feature.names:
            table.class_names[name] = tuple(feature.names)
            table.set_column(name, [_class_name(feature.names, value) for value in column[:][name]])
        elif isinstance(feature, datasets.ClassLabel | datasets.Value):
            table.set_column(name, _plain(table, name, column[:][name]))
        else:
            is_list = isinstance(feature, datasets.List | datasets.LargeList)
            table.nested[name] = 1, "a list" if is_list else "an object"
    return table


def _class_name(names: Sequence[str], value: int | None) -> str | None:
    """None for -1, the hub's word for a label that is not published."""
    return names[value] if value is not None and 0 <= value < len(names) else None


def _plain(table: Table, name: str, values: list[Any]) -> list[Any]:
    """The values; bytes as the text that they hold in UTF-8, as some writers of Parquet store text."""
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError as error:
        raise FedmsError(
            f"{table.where}: column {name!r} holds bytes that are neither pictures nor text: {brief(error)}"
        ) from None


def _is_binary(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("binary", "large_binary", "binary_view")


def _pictures(where: str, column: Any, name: str, feature: Any) -> Sequence[Opener] | None:
    """What opens the pictures of a column; None where it holds none.

    A column of pictures has the type `datasets.Image`, or it holds objects with a key `bytes` (and any
    others), or the bytes of picture files.
    """
    import datasets

    declared = isinstance(feature, datasets.Image)
    keyed = isinstance(feature, dict) and _is_binary(feature.get("bytes"))
    if declared:
        column = column.cast_column(name, datasets.Image(decode=False))
    elif not keyed and not (_is_binary(feature) and _begins_with_picture(column, name)):
        return None
    for row, value in enumerate(column.with_format("arrow")[:][name]):
        found = (
            [value[key] for key in ("bytes", "path") if value.is_valid and key in value]
            if declared or keyed
            else [value]
        )
        if not any(each.is_valid for each in found):
            raise FedmsError(f"{where}: row {row + 1} has no image (column {name!r})")
    mode = feature.mode if declared else None
    return [partial(_opened, column, name, row, mode) for row in range(len(column))]


def _begins_with_picture(column: Any, name: str) -> bool:
    """Whether the first value that is not missing is a picture's bytes."""
    first = next((value for row in column for value in [row[name]] if value is not None), b"")
    try:
        open_bytes(first).close()
    except Exception:  # Pillow's, of whatever these bytes are
        return False
    return True


def _opened(column: Any, name: str, row: int, mode: str | None) -> Image.Image:
    import datasets

    value = column[row][name]
    content = value["bytes"] if isinstance(value, dict) else value
    if content is None:  # a path beside the data set, or on the hub
        return cast(Image.Image, datasets.Image(mode=mode).decode_example(value))
    image = open_bytes(content)
    return image.convert(mode) if mode else image
