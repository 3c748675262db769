"""Run folders read back, and the ways in which they can be broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedms.core.errors import FedmsError
from fedms.runs.reading.run import Span, number, read_run, spans


def test_a_finished_run_is_read_whole(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert run.folder == run_folder
    assert run.config["method"] == "fedms"
    assert run.environment["versions"]["torch"] == "2.13.0"
    assert run.result == json.loads((run_folder / "result.json").read_text())
    assert [record["stage"] for record in run.rounds] == ["statistics"] + ["global"] * 10 + ["local"] * 3 + [
        "end"
    ]
    assert spans(run.rounds) == [
        Span("statistics", 1, 1),
        Span("global", 2, 11),
        Span("local", 12, 14),
        Span("end", 15, 15),
    ]


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "metrics.jsonl", "result.json"])
def test_a_missing_file_is_one_line_that_names_it(run_folder: Path, name: str) -> None:
    (run_folder / name).unlink()
    with pytest.raises(FedmsError) as caught:
        read_run(run_folder)
    assert "not a finished run" in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", b'{"method": "fe'),
        ("result.json", b"[1, 2]"),
        ("result.json", b"\xff\xfe\x00"),
        ("result.json", b"[" * 100_000),
        ("environment.json", b"null"),
        ("metrics.jsonl", b'{"stage": "global"}\n{"stage": '),
        ("metrics.jsonl", b"3\n"),
        ("config.yaml", b"a: [1"),
        ("config.yaml", b""),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(run_folder: Path, name: str, content: bytes) -> None:
    (run_folder / name).write_bytes(content)
    with pytest.raises(FedmsError) as caught:
        read_run(run_folder)
    assert "damaged" in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_and_a_file(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    for path in (tmp_path / "nowhere", make_run() / "result.json"):
        with pytest.raises(FedmsError, match="no such folder"):
            read_run(path)


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf"), [1]])
def test_what_is_not_a_finite_number_is_missing(value: object) -> None:
    assert number({"key": value}, "key") is None
    assert number({}, "key") is None


def test_zero_is_a_number() -> None:
    assert number({"key": 0}, "key") == 0.0
