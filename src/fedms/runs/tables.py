"""Tables of samples that a client predicts, and the files that its predictions are written to."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from fedms.config.data import DataConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.files import write_bytes
from fedms.core.formatting import excerpt
from fedms.data.files import FORMATS, read_file
from fedms.data.folders import pictures_below
from fedms.data.images import SUFFIXES, decode, open_bytes
from fedms.data.table import brief, check_no_pointer
from fedms.data.text_tables import json_rows
from fedms.runs.client import Client, Prediction
from fedms.runs.inputs import Input
from fedms.runs.text_client import Generation

_WEIGHTS = {"local_weight": pa.float64(), "global_weight": pa.float64()}
ANSWER = {"predicted": pa.string(), "probability": pa.float64(), **_WEIGHTS}
"""The columns that predictions add: the class, its probability, and the weights of the two experts."""
GENERATED = {"generated": pa.string(), "tokens": pa.int64(), "ended": pa.string(), **_WEIGHTS}
"""The columns that texts add: the text, its tokens, why it ends, and the mean weights of the two experts."""
Answer = Prediction | Generation
FILE = "file"
"""The column of a folder of pictures: each picture's path below the folder."""
BATCH = {"text": 256, "image": 32}
"""Rows that are predicted and written at a time."""


# reading


def read_rows(path: Path, kind: str) -> pa.Table:
    """The rows of a file with all its columns; of a folder, a row a picture with the column `FILE`.

    Values of CSV and TSV files are text; JSON and Parquet keep their types.

    Raises:
        FedmsError: no such file, a format that we do not read, or one that the file does not keep to.
    """
    if path.is_dir():
        return _pictures(path, kind)
    if not path.is_file():
        raise FedmsError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        check_no_pointer(path)
        try:
            return parquet.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise FedmsError(f"{path}: not a readable Parquet file: {brief(error)}") from None
    read = read_file(path, DataConfig())
    if suffix not in (".json", ".jsonl"):
        return pa.table({name: pa.array(column, pa.string()) for name, column in read.scalars.items()})
    rows = json_rows(path, DataConfig())
    return pa.table({name: _column(path, name, [row.get(name) for row in rows]) for name in read.columns})


def _pictures(folder: Path, kind: str) -> pa.Table:
    if kind != "image":
        raise FedmsError(f"{folder}: is a folder, but the model reads {kind}s: name a file")
    found = [str(path.relative_to(folder.absolute())) for path in pictures_below(folder)[0]]
    if not found:
        raise FedmsError(f"{folder}: holds no pictures ({', '.join(SUFFIXES)})")
    return pa.table({FILE: found})


def _column(path: Path, name: str, values: list[Any]) -> pa.Array:
    """A column of JSON values with one type."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        what = f"column {excerpt(repr(name))} holds values of several types"
        raise FedmsError(f"{path}: {what}; give it one type, such as text") from None


def find_column(path: Path, rows: pa.Table, column: str | None, option: str) -> list[Any]:
    """The values of the column that an option names.

    Raises:
        ConfigError: the option is missing.
        FedmsError: there is no such column, or a row has no value.
    """
    names = ", ".join(map(excerpt, rows.column_names)) or "none"
    if column is None:
        raise ConfigError(f"{option}: is missing: it names a column of {path}; columns: {names}")
    if column not in rows.column_names:
        raise FedmsError(f"{path}: no column {excerpt(repr(column))} for {option}; columns: {names}")
    values: list[Any] = rows[column].to_pylist()
    for number, value in enumerate(values, 1):
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise FedmsError(f"{path}: row {number} has no value in column {excerpt(repr(column))}")
    return values


def labels_of(path: Path, rows: pa.Table, column: str | None) -> list[str]:
    """The label of each row; in a folder of pictures, the sub-folder that the picture lies in.

    Raises:
        ConfigError, FedmsError: as `find_column`; a picture that lies in no sub-folder.
    """
    if not path.is_dir():
        return [str(value).strip() for value in find_column(path, rows, column, "--label")]
    places = [Path(place).parts for place in rows[FILE].to_pylist()]
    if loose := next((parts[0] for parts in places if len(parts) == 1), None):
        raise FedmsError(f"{path / loose}: lies in no sub-folder, so it has no class")
    return [parts[0] for parts in places]


def inputs_of(path: Path, rows: pa.Table, column: str | None, kind: str) -> Iterator[Input]:
    """What the client reads of each row: text; or a picture, by its path or by its bytes.

    A path is relative to the table's folder. Rows are checked at once, and pictures opened one by one.

    Raises:
        ConfigError, FedmsError: as `find_column`; a value that is neither text nor a picture.
    """
    base = path if path.is_dir() else path.parent
    values = find_column(path, rows, FILE if path.is_dir() else column, "--column")
    if kind == "text":
        if odd := next(
            (i for i, each in enumerate(values, 1) if isinstance(each, list | dict | bytes)), None
        ):
            raise FedmsError(f"{path}: row {odd} has no text in column {excerpt(repr(column))}")
        return map(str, values)
    makers = [_picture(base, f"{path}: row {number}", value) for number, value in enumerate(values, 1)]
    return (make() for make in makers)


def _picture(base: Path, where: str, value: Any) -> Callable[[], Input]:
    """What gives one picture. Raises FedmsError if the value can be none."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(content, bytes):
        return partial(decode, partial(open_bytes, content), where)
    place = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(place, str):
        raise FedmsError(f"{where} has neither a picture nor the path of one")
    return partial(Path, base, place)


# predicting


def predictions(client: Client, inputs: Iterator[Input], prior: float | None) -> Iterator[list[Prediction]]:
    """The predictions for a batch of rows at a time; errors as `Client.predict`."""
    while batch := list(islice(inputs, BATCH[client.kind])):
        yield client.predict(batch, prior)


def check_no_answers(path: Path, rows: pa.Table, added: Iterable[str] = ANSWER) -> None:
    """Raise FedmsError where a column has the name of one that predictions add."""
    if both := next((name for name in added if name in rows.column_names), None):
        raise FedmsError(f"{path}: has a column {both!r}, which predictions would add; rename it")


def answered(rows: pa.Table, found: Sequence[Answer]) -> pa.Table:
    """The rows with a column for each part of `ANSWER`, or of `GENERATED`."""
    answers = [_answer(each) for each in found]
    for name in answers[0] if answers else ():
        kind = (ANSWER | GENERATED)[name]
        rows = rows.append_column(name, pa.array([each[name] for each in answers], kind))
    return rows


def _answer(found: Answer) -> dict[str, Any]:
    weights = {"local_weight": found.local_weight, "global_weight": found.global_weight}
    if isinstance(found, Generation):
        return {"generated": found.text, "tokens": found.tokens, "ended": found.ended, **weights}
    return {"predicted": found.label, "probability": found.probability, **weights}


def json_lines(rows: pa.Table, found: Sequence[Answer]) -> Iterator[str]:
    """One JSON object a row: its columns, the answer, and of classes the probability of every one.

    Bytes, such as pictures, are left out.
    """
    for row, each in zip(_without_bytes(rows).to_pylist(), found, strict=True):
        whole = {**row, **_answer(each)}
        if isinstance(each, Prediction):
            whole["probabilities"] = each.probabilities
        yield json.dumps(_finite(whole), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and value - value != 0 else value


# writing


def check_output(path: Path) -> None:
    """Check before any work that predictions can be written to this file.

    Raises:
        ConfigError: a suffix that we do not write.
        FedmsError: there is a file already.
    """
    if path.suffix.lower() not in WRITERS:
        raise ConfigError(f"--output {path}: must end in {', '.join(WRITERS)}")
    check_new(path)


def check_new(path: Path) -> None:
    """Raise FedmsError if there is such a file already: nothing is overwritten."""
    if path.exists() or path.is_symlink():
        raise FedmsError(f"--output {path}: is already there; remove it, or name a new file")


def write_answers(path: Path, rows: pa.Table, found: Sequence[Answer]) -> None:
    """Write the rows with their predictions, completely or not at all, in the format of the suffix."""
    write_bytes(path, WRITERS[path.suffix.lower()](rows, found))


def _separated(separator: str, rows: pa.Table, found: Sequence[Answer]) -> bytes:
    table = answered(_without_bytes(rows), found)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(table.column_names)
    columns = [map(_cell, table[name].to_pylist()) for name in table.column_names]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    """A value in a text file: lists and objects as JSON, nothing for what is missing."""
    if isinstance(value, list | dict):
        return json.dumps(_finite(value), ensure_ascii=False, default=str)
    return value


def _jsonl(rows: pa.Table, found: Sequence[Answer]) -> bytes:
    return "".join(f"{line}\n" for line in json_lines(rows, found)).encode()


def _parquet(rows: pa.Table, found: Sequence[Answer]) -> bytes:
    content = io.BytesIO()
    parquet.write_table(answered(rows, found), content)
    return content.getvalue()


WRITERS: dict[str, Callable[[pa.Table, Sequence[Answer]], bytes]] = {
    ".csv": partial(_separated, ","),
    ".tsv": partial(_separated, "\t"),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
assert WRITERS.keys() <= FORMATS.keys(), "what is written can be read again"


def _without_bytes(rows: pa.Table) -> pa.Table:
    """The columns that text can show."""
    return rows.select([field.name for field in rows.schema if not _holds_bytes(field.type)])


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    inner: Iterable[pa.Field] = [kind.field(number) for number in range(kind.num_fields)]
    return any(_holds_bytes(each.type) for each in inner)
