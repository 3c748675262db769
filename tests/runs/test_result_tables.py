"""A result in Python: its tables, and what a notebook shows."""

import json
from pathlib import Path

import pytest

import fedms
from fedms.core.errors import FedmsError
from tiny_run import finished, run_config, write_texts  # noqa: F401


def test_a_result_has_tables_of_rounds_clients_and_the_frontier(finished):  # noqa: F811
    folder = finished()
    result = fedms.Result.of(folder)
    assert result == json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert list(result.rounds["stage"]) == [line["stage"] for line in lines]
    assert list(result.clients["name"]) == ["client-0", "client-1", "client-2"]
    assert result.clients["accuracy_local"].mean() == pytest.approx(result["accuracy_local"])
    assert list(result.frontier["prior"]) == [point["prior"] for point in result["frontier"]]
    page = result._repr_html_()
    assert "client-2" in page and f"{result['accuracy_local']:.4f}" in page
    assert "<summary>Frontier</summary>" in page and "report.html" not in page


def test_a_run_returns_its_result(checkpoint, tmp_path):
    write_texts(tmp_path / "texts.csv")
    config = run_config(checkpoint("bert"), tmp_path / "texts.csv")
    result = fedms.run(config, tmp_path / "run", report=False)
    assert result.folder == tmp_path / "run" and result == fedms.Result.of(tmp_path / "run")


def test_a_folder_without_a_run_has_no_result(tmp_path: Path):
    with pytest.raises(FedmsError, match="not a finished run"):
        fedms.Result.of(tmp_path)
