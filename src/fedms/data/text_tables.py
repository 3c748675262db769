"""Tables in text files: CSV, TSV, JSON, JSONL. Reading is strict: a short line is an error, not a gap."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt
from fedms.data.table import Table, brief

TAB_NAMES = ("tab", "\\t")
"""What `data.separator` accepts for a tab, which is hard to type."""
LIKELY_SEPARATORS = (";", "\t", "|", ",")
CSV_WRITTEN = re.compile(r'(?:(?:"(?:[^"]|"")*+"|[^"\t\r\n]*+)(?:\t|\r\n|\n|\r))*+')
"""A whole file with tabs, its last line ended, as a CSV writer makes it: a value with a quotation mark
stands in quotation marks, and those inside are doubled."""


def read_csv(path: Path, config: DataConfig) -> Table:
    """A `.csv` file; `data.separator` may name another separator."""
    return _separated(path, config, ",")


def read_tsv(path: Path, config: DataConfig) -> Table:
    """A `.tsv` file."""
    return _separated(path, config, "\t")


def _separated(path: Path, config: DataConfig, usual: str) -> Table:
    separator = "\t" if config.separator in TAB_NAMES else config.separator or usual
    with path.open(encoding=_encoding(config), newline="") as file:
        if separator == "\t":
            return tabbed(str(path), file.read())
        return delimited(str(path), file, separator)


def _encoding(config: DataConfig) -> str:
    return config.encoding or "utf-8-sig"


def tabbed(where: str, text: str) -> Table:
    """A table with tabs. Quotation marks are part of the text, unless a CSV writer made the file.

    They are a CSV writer's where every value with a quotation mark stands in quotation marks, with those
    inside doubled, and either each line is a whole row all the same, or lines must be joined to give whole
    rows. So a text that begins with a quotation mark never swallows the rows below it.
    """
    lines = re.split(r"\r\n|\n|\r", text)
    width = lines[0].count("\t") + 1
    whole = all(line.count("\t") + 1 == width for line in lines if line)
    if '"' in text and CSV_WRITTEN.fullmatch(text + "\n"):
        if not whole:
            return delimited(where, io.StringIO(text, newline=""), "\t")
        with _long_values():
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
        if len(rows) == len(lines) - (lines[-1] == ""):
            return _table(where, ((number, row) for number, row in enumerate(rows, 1)), "\t")
    return _table(where, ((number, line.split("\t")) for number, line in enumerate(lines, 1)), "\t")


def delimited(where: str, file: Iterable[str], separator: str) -> Table:
    """A table with CSV's quoting."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    try:
        with _long_values():
            return _table(where, ((reader.line_num, row) for row in reader), separator)
    except csv.Error as error:
        raise FedmsError(f"{where}: line {reader.line_num} cannot be read: {brief(error)}") from None


@contextmanager
def _long_values() -> Iterator[None]:
    """Let the csv module read values of any length; its limit is global to the process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _table(where: str, lines: Iterable[tuple[int, list[str]]], separator: str) -> Table:
    """From numbered lines of values, the header first; empty lines are skipped."""
    numbered = iter(lines)
    _, header = next(numbered, (1, []))
    _check_header(where, header, separator)
    rows: list[list[str]] = []
    for number, row in numbered:
        if not row or row == [""] != [*header[1:], ""]:
            continue
        if len(row) != len(header):
            raise FedmsError(
                f"{where}: line {number} has {len(row)} values, the header names {len(header)} columns"
            )
        rows.append(row)
    return Table(where, len(rows), {name: [row[i] for row in rows] for i, name in enumerate(header)})


def _check_header(where: str, header: list[str], separator: str) -> None:
    if any("\0" in name for name in header):
        raise FedmsError(
            f"{where}: the header holds NUL characters: set data.encoding, for example utf-16-le"
        )
    if len(header) == 1:  # a data set has two columns at least
        likely = next((each for each in LIKELY_SEPARATORS if each != separator and each in header[0]), None)
        if likely:
            name = "tab" if likely == "\t" else likely
            raise FedmsError(
                f"{where}: the header has one column, {excerpt(repr(header[0]))}: "
                f"if {name!r} stands between its values, set data.separator={name!r}"
            )
    if len(set(header)) != len(header):
        raise FedmsError(f"{where}: the header names a column twice: {', '.join(header)}")


def _check_no_nul(where: str, text: str) -> None:
    """Raise FedmsError where the beginning of a file shows that it is in UTF-16."""
    if "\0" in text:
        raise FedmsError(f"{where}: begins with NUL characters: set data.encoding, for example utf-16-le")


def read_json(path: Path, config: DataConfig) -> Table:
    """One array of objects, or one object a line."""
    rows = json_rows(path, config)
    table = Table(str(path), len(rows))
    for name in dict.fromkeys(key for row in rows for key in row):
        table.set_column(name, [row.get(name) for row in rows])
    return table


def json_rows(path: Path, config: DataConfig) -> list[dict[str, Any]]:
    """The objects of a JSON file, one a row.

    Raises:
        FedmsError: it is not JSON, or a row is no object.
    """
    text = path.read_text(encoding=_encoding(config))
    _check_no_nul(str(path), text[:4])
    lines = (
        [(1, text)]
        if text.lstrip().startswith("[")
        else [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    )
    rows: list[Any] = []
    for number, line in lines:
        try:
            value = json.loads(line)
            if "\\ud" in line.lower():
                json.dumps(value, ensure_ascii=False).encode()  # half a character is no text
        except (ValueError, RecursionError) as error:
            _check_not_one_object(path, text)
            place = number + getattr(error, "lineno", 1) - 1
            raise FedmsError(
                f"{path}: line {place} is not valid JSON: {brief(getattr(error, 'msg', error))}"
            ) from None
        rows += value if isinstance(value, list) else [value]
    if len(rows) == 1:
        _check_not_one_object(path, text)
    if odd := next((i for i, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
        raise FedmsError(f"{path}: row {odd} is not an object with a value for each column")
    return rows


def _check_not_one_object(path: Path, text: str) -> None:
    """Raise FedmsError where the file is one object that holds the whole data set."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict) and (name := next((k for k, v in value.items() if _is_long(v)), None)):
        raise FedmsError(
            f"{path}: row 1 holds many rows under {excerpt(repr(name))}: write one object a line, each with "
            "its text and its label (in pandas: to_json(path, orient='records', lines=True))"
        )


def _is_long(value: object) -> bool:
    return isinstance(value, list | dict) and len(value) > 1
