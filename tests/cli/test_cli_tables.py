"""`fedms predict --input`: every row of a table or picture of a folder, with its other columns."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

import fedms
from fedms.cli.main import app
from tiny_run import finished  # noqa: F401 (a fixture)

runner = CliRunner()
TEXTS = ["turn on the light", "play music", 'say "louder", please\nnow']
ROWS = [{"id": f"00{number}", "message": text, "count": number} for number, text in enumerate(TEXTS)]
ADDED = ["predicted", "probability", "local_weight", "global_weight"]


def ask(*arguments):
    return runner.invoke(app, [str(each) for each in arguments])


def write(path, rows=ROWS):
    """The rows in the format of the suffix."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [*csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")]


@pytest.mark.parametrize("given", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("wanted", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_row_keeps_its_columns_and_gets_the_answer(finished, tmp_path, given, wanted):  # noqa: F811
    table, output = write(tmp_path / f"in{given}"), tmp_path / f"out{wanted}"
    done = ask(
        "predict",
        finished(),
        "--client",
        "client-0",
        "--input",
        table,
        "--column",
        "message",
        "--output",
        output,
    )
    assert done.exit_code == 0, done.output
    expected = fedms.load(finished(), "client-0").predict(TEXTS)
    for row, before, each in zip(read(output), ROWS, expected, strict=True):
        assert [*row][: len(before) + 4] == [*before, *ADDED]
        typed = {".csv", ".tsv"}.isdisjoint((given, wanted))
        assert {name: row[name] for name in before} == {
            name: value if typed else type(row[name])(value) for name, value in before.items()
        }
        assert row["predicted"] == each.label
        assert float(row["probability"]) == each.probability
        assert float(row["local_weight"]) == each.local_weight
        if wanted == ".jsonl":
            assert row["probabilities"] == each.probabilities
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([table.name, output.name])


def test_without_output_the_rows_are_json_lines(finished, tmp_path):  # noqa: F811
    table = write(tmp_path / "in.csv")
    asked = ["predict", finished(), "--client", "client-0", "--input", table, "--column", "message"]
    lines = [json.loads(line) for line in ask(*asked).stdout.splitlines()]
    assert [line["message"] for line in lines] == TEXTS
    assert ask(*asked, "--output", tmp_path / "out.jsonl").exit_code == 0
    assert read(tmp_path / "out.jsonl") == lines


def test_a_method_that_mixes_nothing_has_empty_weights(finished, tmp_path):  # noqa: F811
    table = write(tmp_path / "in.csv")
    run = finished(method="fedavg")
    asked = ["predict", run, "--client", "client-0", "--input", table, "--column", "message"]
    assert ask(*asked, "--output", tmp_path / "out.csv").exit_code == 0
    assert {row["local_weight"] for row in read(tmp_path / "out.csv")} == {""}


def test_pictures_of_a_folder_or_of_a_column(finished, tmp_path):  # noqa: F811
    run, folder = finished(family="vit"), tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    places = ["black.png", "more/white.png"]
    for place in places:
        Image.new("RGB", (40, 40), place.split("/")[-1].removesuffix(".png")).save(folder / place)
    (folder / "notes.txt").write_text("no picture")
    expected = [each.label for each in fedms.load(run, "client-0").predict([folder / p for p in places])]

    asked = ["predict", run, "--client", "client-0", "--input"]
    of_folder = [json.loads(line) for line in ask(*asked, folder).stdout.splitlines()]
    assert [(row["file"], row["predicted"]) for row in of_folder] == [*zip(places, expected, strict=True)]

    write(folder / "paths.csv", [{"photo": place, "id": "1"} for place in places])
    of_paths = ask(*asked, folder / "paths.csv", "--column", "photo").stdout.splitlines()
    assert [json.loads(line)["predicted"] for line in of_paths] == expected

    write(folder / "held.parquet", [{"photo": {"bytes": (folder / place).read_bytes()}} for place in places])
    of_bytes = ask(*asked, folder / "held.parquet", "--column", "photo").stdout.splitlines()
    assert [json.loads(line)["predicted"] for line in of_bytes] == expected
    assert all("photo" not in json.loads(line) for line in of_bytes)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--input", "in.csv"], 2, "--column: is missing: it names a column of in.csv; columns: id, mess"),
        (
            ["--input", "in.csv", "--column", "text"],
            1,
            "in.csv: no column 'text' for --column; columns: id, m",
        ),
        (["--input", "gone.csv", "--column", "text"], 1, "gone.csv: no such file or folder"),
        (["--input", "notes.doc", "--column", "text"], 1, "known: .csv, .tsv, .jsonl, .json, .parquet"),
        (["--input", "broken.parquet", "--column", "text"], 1, "broken.parquet: not a readable Parquet file"),
        (["--input", "blank.csv", "--column", "message"], 1, "blank.csv: row 2 has no value in column 'mess"),
        (
            ["--input", "mixed.jsonl", "--column", "message"],
            1,
            "column 'other' holds values of several types",
        ),
        (["--input", "lists.jsonl", "--column", "message"], 1, "lists.jsonl: row 1 has no text in column"),
        (["--input", "again.csv", "--column", "message"], 1, "again.csv: has a column 'predicted', which"),
        (["--input", ".", "--column", "message"], 1, "is a folder, but the model reads texts: name a file"),
        (["--input", "in.csv", "--column", "message", "--output", "notes.doc"], 2, "must end in .csv, .tsv,"),
        (
            ["--input", "in.csv", "--column", "message", "--output", "in.csv"],
            1,
            "is already there; remove it",
        ),
        (["--input", "in.csv", "--column", "message", "a text"], 2, "--input: is given beside TEXT or FILE"),
        (["--column", "message"], 2, "--column: needs --input"),
        (["--output", "out.csv"], 2, "--output: needs --input"),
    ],
)
def test_a_line_for_what_cannot_be(finished, tmp_path, monkeypatch, options, code, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.csv")
    write(tmp_path / "blank.csv", [{"message": "a", "id": "1"}, {"message": " ", "id": "2"}])
    write(tmp_path / "again.csv", [{"message": "a", "predicted": "1"}])
    write(tmp_path / "mixed.jsonl", [{"message": "a", "other": 1}, {"message": "b", "other": "c"}])
    write(tmp_path / "lists.jsonl", [{"message": ["a"]}, {"message": ["b"]}])
    (tmp_path / "notes.doc").write_text("a")
    (tmp_path / "broken.parquet").write_text("a")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = ask("predict", finished(), "--client", "client-0", *options)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert message in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_line_of_standard_input_is_answered_before_the_next_one_comes(finished):  # noqa: F811
    with subprocess.Popen(
        [sys.executable, "-m", "fedms.cli", "predict", str(finished()), "--client", "client-0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as process:
        assert process.stdin and process.stdout
        for text in ("play music", "turn on the light"):
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            assert process.stdout.readline().endswith(f"  {text}\n")
        process.stdin.write("no line break at its end")
        process.stdin.close()
        assert process.stdout.read().endswith("  no line break at its end\n")
    assert process.returncode == 0


def test_a_bad_byte_of_standard_input_is_named_by_its_place(finished):  # noqa: F811
    done = runner.invoke(
        app,
        ["predict", str(finished()), "--client", "client-0", "--json"],
        input=b"\xef\xbb\xbfplay music\n" + b"x" * 9000 + b"\ncaf\xe9\n",
    )
    assert done.exit_code == 1
    assert done.stderr == "error: standard input: not a text in UTF-8 (byte 9018)\n"
    assert json.loads(done.stdout.splitlines()[0])["input"] == "play music"
