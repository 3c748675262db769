"""The HTML report: self-contained, escaped, and saying what result.json says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from reading import Page, follows_the_theme, identifiers_resolve, looks_drawn, read_csv, stands_alone

from fedms.runs.report.run.page import write_report

MakeRun = Callable[..., Path]


@pytest.fixture
def html(reported: Path) -> str:
    return (reported / "report.html").read_text(encoding="utf-8")


def test_the_report_stands_alone(reported: Path, html: str) -> None:
    stands_alone(html, reported)


def test_identifiers_are_unique_and_references_resolve(html: str) -> None:
    identifiers_resolve(html)


def test_names_from_the_data_are_text(html: str) -> None:
    page = Page(html)
    assert not page.tags & {"b", "i"}
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "<b>x</b> $\\frac$ [red]&\"'" in page.cells
    assert "音楽" in html


def test_colours_follow_the_theme(html: str) -> None:
    follows_the_theme(html, pictures=9)


def test_the_client_table_says_what_the_result_says(reported: Path, html: str) -> None:
    cells = Page(html).cells
    for client in json.loads((reported / "result.json").read_text())["per_client"]:
        own, everyone = f"{client['accuracy_local']:.4f}", f"{client['accuracy_global']:.4f}"
        at = cells.index(own) - 2
        assert cells[at : at + 3] == [client["name"], f"{client['samples']:,}", own]
        assert cells[at + 3 : at + 5] == [everyone, f"{client['gate_global_share']:.3f}"]


def test_the_headline_says_what_the_result_says(html: str) -> None:
    for text in (
        "88.3 %",
        "70.5 %",
        "78.5 %",
        "61.0 %",
        "24.7 %",
        "0.22 %",
        "12.3 MB",
        "23.5 MB",
        "4.56 TFLOP",
        "2 min 8 s",
        "812 MB",
    ):
        assert text in html


def test_what_was_run_and_what_failed_is_told(html: str) -> None:
    cells = Page(html).cells
    assert cells[cells.index("versions") + 1] == "fedms 0.1.0, torch 2.13.0"
    assert cells[cells.index("git commit") + 1] == "–"
    assert cells[cells.index("failed client updates") + 1] == "1 error"
    assert "global 5" in cells and "statistics" in cells and "<i>lost</i>" in cells


def test_every_picture_is_files_that_are_not_blank(reported: Path, html: str) -> None:
    names = ("frontier", "clients", "score", "loss", "classes", "confusion", "blocks", "traffic", "partition")
    assert {path.name for path in (reported / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")
    }
    for name in names:
        looks_drawn(reported / "figures" / name)


def test_the_numbers_behind_a_picture_are_those_of_the_result(reported: Path) -> None:
    result = json.loads((reported / "result.json").read_text())
    points = read_csv(reported / "figures" / "frontier.csv")
    assert [{key: float(value) for key, value in point.items()} for point in points] == result["frontier"]
    shown = {
        row["client"]: float(row["accuracy_local"]) for row in read_csv(reported / "figures" / "clients.csv")
    }
    assert shown == {client["name"]: client["accuracy_local"] for client in result["per_client"]}


def test_the_same_run_gives_the_same_report(reported: Path, html: str) -> None:
    assert write_report(reported).read_text(encoding="utf-8") == html
    assert not list(reported.glob("*.tmp"))


def test_what_is_missing_is_left_out(make_run: MakeRun) -> None:
    folder = make_run(
        "bare", gate_global_share=None, frontier=[], partition=None, per_client=[], accuracy_global=None
    )
    page = write_report(folder).read_text(encoding="utf-8")
    Page(page)
    assert {path.stem for path in (folder / "figures").glob("*.csv")} == {
        "score",
        "loss",
        "blocks",
        "traffic",
    }
    assert "Gate weight</h3>" not in page and "– on everyone&#x27;s data" in page


def test_clients_without_a_gate_have_no_gate_panel(make_run: MakeRun) -> None:
    clients = [
        {"name": "a", "samples": 3, "accuracy_local": 0.5, "accuracy_global": None, "gate_global_share": None}
    ]
    page = write_report(make_run("one", per_client=clients)).read_text(encoding="utf-8")
    assert "gate weight" not in re.findall(r"<svg.*?</svg>", page, re.DOTALL)[1]
    cells = Page(page).cells
    at = cells.index("0.5000")
    assert cells[at - 2 : at + 3] == ["a", "3", "0.5000", "–", "–"]


def test_a_run_of_no_rounds_and_an_empty_result(make_run: MakeRun) -> None:
    folder = make_run("empty")
    (folder / "metrics.jsonl").write_text("")
    (folder / "result.json").write_text("{}")
    Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_thousand_clients_stay_a_small_file(make_run: MakeRun) -> None:
    path = write_report(make_run("big", clients=1200))
    assert path.stat().st_size < 600_000
    assert "200 clients with higher accuracy are left out" in path.read_text(encoding="utf-8")
