"""CSV, TSV, JSON as users bring them: quotation marks, separators, encodings, long values, lists."""

import csv
import io
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedms.config import load_config
from fedms.config.data import DataConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.data.sources import Dataset, load
from fedms.data.text_tables import tabbed

CASES = Path(__file__).parents[2].parent / "shared" / "cases"


def read(path: Path, **keys: Any) -> Dataset:
    return load(DataConfig(source=str(path), **keys), 0)


def says(path: Path, **keys: Any) -> str:
    with pytest.raises(FedmsError) as caught:
        read(path, **keys)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


# --- quotation marks in TSV ---------------------------------------------------------------------------------

PLAIN = {
    "one that begins": ['"hello', "good night", "bye"],
    "two that look like a pair": ['"hello', "good night", 'bye"'],
    "a quotation and more": ['"hello" he said', "good night", "bye"],
    "inches": ['5" nail', '"', "bye"],
    "a pair over several rows": ['"', "good night", "bye", '"', "hm"],
    "quoted, but marks inside are single": ['"say "hi" to me"', "good night", "bye"],
}


@pytest.mark.parametrize("texts", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_text_that_begins_with_a_quotation_mark_swallows_no_row(
    tmp_path: Path, texts: list[str], ends: str
) -> None:
    lines = ["text\tlabel", *(f"{text}\t{'ab'[row % 2]}" for row, text in enumerate(texts))]
    (tmp_path / "d.tsv").write_text(ends.join([*lines, ""]), newline="")
    data = read(tmp_path / "d.tsv")
    assert list(data.inputs) == texts
    assert data.labels.tolist() == [row % 2 for row in range(len(texts))]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("texts", [['say "hi"', "b"], ["two\nlines", '"'], ["a\tb", "c"], ["plain", "x"]])
def test_what_a_csv_writer_made_is_read_back(
    tmp_path: Path, texts: list[str], quoting: Literal[0, 1]
) -> None:
    held = io.StringIO(newline="")
    writer = csv.writer(held, delimiter="\t", quoting=quoting)
    writer.writerows([["text", "label"], *([text, "ab"[row % 2]] for row, text in enumerate(texts * 2))])
    (tmp_path / "d.tsv").write_text(held.getvalue(), newline="")
    assert list(read(tmp_path / "d.tsv").inputs) == texts * 2


def test_a_short_line_of_a_tsv_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text('text\tlabel\n"a\tx\nb\n')
    assert "line 3 has 1 values, the header names 2 columns" in says(tmp_path / "d.tsv")


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases, which is not here")
def test_the_case_of_a_tsv_with_quotes() -> None:
    data = read(CASES / "tsv_quotes.tsv")
    assert len(data.inputs) == 120
    assert data.inputs[117] == '"turn the lights on' and data.inputs[119] == 'please"'


# --- separators and encodings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separator", "key"), [(";", ";"), ("\t", "tab"), ("\t", "\t"), ("|", "|"), (",", ",")]
)
def test_separators_are_named_by_the_hint_and_read_with_the_key(
    tmp_path: Path, separator: str, key: str
) -> None:
    path = tmp_path / ("d.tsv" if separator == "," else "d.csv")
    rows = [["text", "label"], ["one, two", "a"], ["three", "b"]]
    if separator == ",":
        rows[1][0] = "one two"
    path.write_text("\n".join(separator.join(row) for row in rows))
    assert "set data.separator='" + ("tab" if separator == "\t" else separator) + "'" in says(path)
    assert list(read(path, separator=key).inputs) == [rows[1][0], "three"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "latin-1", "shift_jis"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_encodings_are_named_by_the_hint_and_read_with_the_key(
    tmp_path: Path, encoding: str, suffix: str
) -> None:
    texts = ["日本", "café"[:3]] if encoding == "shift_jis" else ["café", "Größe"]
    path = tmp_path / f"d{suffix}"
    if suffix in (".csv", ".tsv"):
        gap = "," if suffix == ".csv" else "\t"
        content = "\n".join([f"text{gap}label", *(f"{t}{gap}{n}" for n, t in enumerate(texts))])
    else:
        rows = [{"text": text, "label": number} for number, text in enumerate(texts)]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        content = "\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]"
    path.write_bytes(content.encode(encoding))
    hint = says(path)
    assert "data.encoding" in hint
    if encoding == "utf-16":
        assert "for example utf-16" in hint
    assert list(read(path, encoding=encoding).inputs) == texts
    if encoding == "utf-16":
        assert "not a text file in ascii" in says(path, encoding="ascii")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("separator", ";;", "data.separator: input should be one character, or `tab`"),
        ("separator", "", "data.separator: input should be one character, or `tab`"),
        ("separator", '"', "data.separator: input should be one character, or `tab`"),
        ("encoding", "base64", "data.encoding: input should be a text encoding"),
        ("encoding", "nonsense", "data.encoding: input should be a text encoding"),
        ("encoding", "undefined", "data.encoding: input should be a text encoding"),
    ],
)
def test_keys_that_name_nothing_are_one_line(key: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"data": {key: value}})
    assert str(caught.value).startswith(allowed) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.json"])
def test_utf_16_without_a_mark_is_named_by_its_nuls(tmp_path: Path, name: str) -> None:
    """ASCII in UTF-16 is UTF-8 with a NUL after each character."""
    content = '[{"text": "a", "label": 1}]' if "js" in name else "text,label\na,x\n"
    (tmp_path / name).write_bytes(content.encode("utf-16-le"))
    message = says(tmp_path / name)
    assert "NUL" in message and "set data.encoding, for example utf-16-le" in message


# --- long values, other files -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_value_has_any_length(tmp_path: Path, suffix: str) -> None:
    gap, path = "," if suffix == ".csv" else "\t", tmp_path / f"d{suffix}"
    before = csv.field_size_limit()
    path.write_text(f'text{gap}label\n{"x" * 300_000}{gap}a\n"{"y" * 200_000}"{gap}b\n')
    assert [len(text) for text in read(path).inputs] == [300_000, 200_000]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["d.xlsx", "d.XLS", "d.ods"])
def test_a_sheet_is_sent_back_with_a_hint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    assert "save the sheet as CSV" in says(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(b"PK\x03\x04")
    assert "save the sheet as CSV" in says(tmp_path / "folder")


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.json", "d.parquet"])
def test_a_git_lfs_pointer_is_named_as_such(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 9\n")
    assert "a Git LFS pointer, not the file itself: run `git lfs pull`" in says(tmp_path / name)


# --- JSON ---------------------------------------------------------------------------------------------------

OBJECTS = {
    "columns": {"text": ["a", "b"], "label": ["x", "y"]},
    "rows under a key": {"version": "1", "data": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]},
    "rows by number": {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
}


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_in_place_of_lines_is_named(
    tmp_path: Path, value: dict[str, Any], name: str, indent: int | None
) -> None:
    (tmp_path / name).write_text(json.dumps(value, indent=indent))
    message = says(tmp_path / name)
    assert "row 1 holds many rows under" in message and "one object a line" in message


def test_one_row_with_a_list_is_named_with_the_way_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"hello {n}", "label": "ab"[n % 2]} for n in range(9)]
    rows[6]["label"] = ["a", "b"]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    message = says(path)
    assert "row 7 has a list for its label (column 'label')" in message and "data.label" in message
    rows[6]["label"], rows[2]["text"] = "a", {"en": "hello"}
    path.write_text("\n".join(map(json.dumps, rows)))
    assert "row 3 has an object for its text (column 'text')" in says(path)
    for row in rows:
        row["more"] = [1]
    rows[2]["text"] = "hello"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(path).columns == {}  # a list in a column that nobody uses


def test_a_column_of_lists_is_passed_over_where_another_fits(tmp_path: Path) -> None:
    rows = [{"text": ["hello", str(n)], "sentence": f"hello {n}", "label": "ab"[n % 2]} for n in range(4)]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(read(path).inputs) == [f"hello {n}" for n in range(4)]
    mixed = [{"category": "x", **row, "label": ["a"] if not n else "a"} for n, row in enumerate(rows)]
    path.write_text("\n".join(map(json.dumps, mixed)))
    assert "row 1 has a list for its label (column 'label')" in says(
        path
    )  # `category` is no silent substitute


def test_a_column_is_not_both_text_and_label(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\na,x\nb,y\n")
    for keys in ({"text": "label", "label": "label"}, {"text": "text", "label": "text"}, {"text": "label"}):
        if keys == {"text": "label"}:
            with pytest.raises(FedmsError, match=r"no column found for data\.label"):
                read(tmp_path / "d.csv", **keys)
        else:
            assert "cannot be both text and label: name another" in says(tmp_path / "d.csv", **keys)


# --- any texts ----------------------------------------------------------------------------------------------

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n\0"), min_size=1, max_size=6)
    | st.text('"ab ', min_size=1, max_size=6),
    min_size=2,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_lines_of_a_tsv_are_as_many_rows(texts: list[str]) -> None:
    content = "\n".join(["text\tlabel", *(f"{text}\t{row}" for row, text in enumerate(texts)), ""])
    table = tabbed("d.tsv", content)
    assert table.scalars["label"] == [str(row) for row in range(len(texts))]
    if not all(text[0] == text[-1] == '"' for text in texts if '"' in text):
        assert table.scalars["text"] == texts


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_any_texts_of_a_csv_writer_are_read_back(texts: list[str], quoting: Literal[0, 1]) -> None:
    held = io.StringIO(newline="")
    writer = csv.writer(held, delimiter="\t", quoting=quoting)
    writer.writerows([["text", "label"], *([text, str(row)] for row, text in enumerate(texts))])
    assert tabbed("d.tsv", held.getvalue()).scalars["text"] == texts
