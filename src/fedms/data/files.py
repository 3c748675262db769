"""One file of a source: its format is known by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.data.arrow_tables import read_parquet
from fedms.data.table import Table, check_no_pointer
from fedms.data.text_tables import read_csv, read_json, read_tsv

FORMATS: dict[str, Callable[[Path, DataConfig], Table]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
}
SHEETS = (".xlsx", ".xls", ".ods")
SHEET_HINT = "save the sheet as CSV (in Excel: CSV UTF-8)"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_file(path: Path, config: DataConfig) -> Table:
    """The table in a file.

    Raises:
        FedmsError: a format that we do not read, or a file that does not keep to its format.
        OSError: it cannot be opened.
    """
    suffix = path.suffix.lower()
    read = FORMATS.get(suffix)
    if read is None:
        hint = f"; {SHEET_HINT}" if suffix in SHEETS else ""
        raise FedmsError(f"{path}: cannot read this kind of file; known: {', '.join(FORMATS)}{hint}")
    check_no_pointer(path)
    try:
        return read(path, config)
    except UnicodeError as error:
        raise FedmsError(_undecodable(path, config, error)) from None


def _undecodable(path: Path, config: DataConfig, error: UnicodeError) -> str:
    at = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
    with path.open("rb") as file:
        likely = "utf-16" if file.read(2) in UTF_16_MARKS else "cp1252"
    return (
        f"{path}: not a text file in {config.encoding or 'UTF-8'}{at}: set data.encoding to what it is, "
        f"for example {likely}"
    )
