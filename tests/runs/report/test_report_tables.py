"""Results and partitions as text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedms.core import formatting as words
from fedms.federation.methods import METHODS
from fedms.runs.reading.comparison import read_comparison
from fedms.runs.report.comparison.tables import comparison_table
from fedms.runs.report.tables import (
    COLUMNS,
    MOST_CLIENTS,
    methods_table,
    partition_summary,
    partition_table,
    result_rows,
    result_table,
    strip,
)


def text(table: Any, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.fixture
def result(run_folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run_folder / "result.json").read_text())
    return loaded


def test_a_row_shows_the_numbers_of_the_result(result: dict[str, Any]) -> None:
    assert COLUMNS[0] == "method"
    assert result_rows([result]) == [
        ["fedms", "0.8829", "0.7051", "0.7846", "0.247", "12.3", "4.56", "128.4"]
    ]


def test_missing_values_are_dashes(result: dict[str, Any]) -> None:
    rows = result_rows([{**result, "gate_global_share": None, "train_flops": None}, {"method": "none"}])
    assert rows[0] == ["fedms", "0.8829", "0.7051", "0.7846", "–", "12.3", "–", "128.4"]
    assert rows[1] == ["none"] + ["–"] * 7


def test_runs_that_are_alike_are_told_apart_by_their_folders(result: dict[str, Any]) -> None:
    rows = result_rows([result, result, {**result, "seed": 1}], ["runs/a", "runs/b", "c"])
    assert [row[0] for row in rows] == [
        "fedms (seed 0) (runs/a)",
        "fedms (seed 0) (runs/b)",
        "fedms (seed 1)",
    ]


def test_a_method_that_occurs_twice_is_told_apart_by_its_seed(result: dict[str, Any]) -> None:
    rows = result_rows([result, {**result, "seed": 1}, {**result, "method": "local"}])
    assert [row[0] for row in rows] == ["fedms (seed 0)", "fedms (seed 1)", "local"]


def test_the_terminal_table_fits_and_takes_names_literally(result: dict[str, Any]) -> None:
    shown = text(result_table([{**result, "method": "[red]x"}]))
    assert "[red]x" in shown and "0.8829" in shown and "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def words_of(shown: str) -> set[str]:
    return set(shown.split())


@pytest.mark.parametrize("width", [48, 60, 80, 120])
def test_tables_leave_out_columns_before_they_break_a_word(
    result: dict[str, Any], compared: Path, width: int
) -> None:
    runs = ["runs/one", "runs/two"]
    narrow = text(result_table([result, result], runs, width), width)
    assert max(map(len, narrow.splitlines())) <= width
    assert {"fedms", "0.8829", "0.7846", f"({runs[0]})"} <= words_of(narrow)
    comparison = read_comparison(compared)
    wide = text(comparison_table(comparison, width), width)
    assert max(map(len, wide.splitlines())) <= width
    missing = wide.partition("comparison.md has ")[2]
    for title in ("trainable", "downlink", "seconds", "TFLOP", "uplink", "gate", "worst"):
        assert (title in words_of(wide.partition("comparison.md has ")[0])) != (title in missing)
    assert bool(missing) == (width < 120) and {"local", "0.898"} <= words_of(wide)


def test_all_methods_fit_the_terminal_and_nothing_is_cut() -> None:
    methods = [(method.name, method.summary, method.paper or "") for method in METHODS.values()]
    shown = text(methods_table(methods))
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    assert set(" ".join(map(" ".join, methods)).split()) <= set(shown.split())


@pytest.mark.parametrize("width", [80, 120])
def test_the_partition_fits_the_terminal(result: dict[str, Any], width: int) -> None:
    described = {**result["partition"], "splits": [[100, 10, 20]] * 12}
    shown = text(partition_table(described, width), width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown.replace("$\\frac…", "")
    assert shown.count("100/10/20") == 12 and "[red" not in shown


def test_many_clients_and_classes_are_cut() -> None:
    described = {"classes": list("abc") * 100, "clients": range(500), "counts": [[1] * 300] * 500}
    shown = text(partition_table(described, 80))
    assert f"… {500 - MOST_CLIENTS} more" in shown and "classes a mark" in shown
    assert (
        partition_summary(described) == "500 clients, 300 classes, 150,000 train and validation samples; "
        "a client holds 300 of them, of 300 classes"
    )


def test_a_strip_shows_any_sample_at_all() -> None:
    assert strip([0, 1, 1000, 250]) == " ░█▒"
    assert strip([0, 0]) == "  "
    assert strip([1, 0, 0], per_mark=2) == "█ "


def test_numbers_in_words() -> None:
    assert [words.scaled(value, "B") for value in (None, 0, 999, 1000, 999_600, 12_345_678)] == [
        "–",
        "0 B",
        "999 B",
        "1.00 kB",
        "1.00 MB",
        "12.3 MB",
    ]
    assert [words.duration(value) for value in (None, 3.14, 59.96, 75, 4000)] == [
        "–",
        "3.1 s",
        "1 min 0 s",
        "1 min 15 s",
        "1 h 6 min",
    ]
    assert words.plural(1, "class") == "1 class" and words.plural(2, "class") == "2 classes"
    assert words.clip("a\nb\x1b[31m") == "a�b�[31m" and words.clip("abcdef", 4) == "abc…"
