"""What reports claim and propose: verdicts, answers by class, disagreement, commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import typer
from reading import Page, read_csv

from fedms.cli.main import app
from fedms.core.errors import FedmsError
from fedms.runs.reading.comparison import Comparison, RowResults
from fedms.runs.reading.predictions import Predicted, read_predictions
from fedms.runs.reading.run import Run
from fedms.runs.report.comparison.verdict import verdict as verdict_of_comparison
from fedms.runs.report.html import Link, _in_rows, cards, table
from fedms.runs.report.run.answers import classes, confusion, disagreement
from fedms.runs.report.run.verdict import verdict

Make = Callable[..., Path]


def run_of(predictions: list[Predicted], **result: Any) -> Run:
    run = Run(Path("none"), {}, {}, [], result)
    run.__dict__["predictions"] = predictions
    return run


def predicted(client: str, label: str, said: str, everyone: str, own: str, apart: float = 0.5) -> Predicted:
    return Predicted(client, "7", label, said, 0.75, everyone, own, apart)


def test_the_verdict_of_a_run_claims_what_its_intervals_allow() -> None:
    better = [
        predicted(f"client {at}", "a", "a", everyone, "a")
        for at in range(8)
        for everyone in ("b", "ab"[at % 2])
    ]
    assert verdict(run_of(better)) == (
        "On own data, a client's mixture is ahead of the global expert alone (+75.0 points, +56.2 to +93.8) "
        "and does exactly as well as the local expert alone."
    )
    mixed = [predicted(f"client {at}", "a", "ab"[at % 2], "ab"[(at + 1) % 2], "a") for at in range(8)]
    said = verdict(run_of(mixed))
    assert "cannot be told from the global expert alone (+0.0 points" in said
    assert "is behind the local expert alone (−50.0 points" in said
    assert "With 2 clients it cannot be said" in verdict(run_of(better[:4]))


def test_without_two_experts_the_verdict_is_the_accuracy_with_its_interval() -> None:
    clients = [{"name": f"c{at}", "accuracy_local": at / 10} for at in range(8)]
    assert re.fullmatch(
        r"A client's model is right for 35\.0 % of its own test data, in the mean over clients "
        r"\(95 % interval over clients: \d+\.\d % to \d+\.\d %\)\.",
        verdict(run_of([], per_client=clients)),
    )
    assert verdict(run_of([])) == ""


def test_the_verdict_of_a_comparison_claims_what_its_intervals_allow() -> None:
    def row(name: str, difference: float, apart: bool, low: float | None = 0.0) -> RowResults:
        versus = {"difference": difference, "low": low, "distinguishable": apart}
        both = {"accuracy_local": versus, "accuracy_global": {**versus, "difference": -difference}}
        return RowResults(name, {"versus_baseline": both}, [])

    def said(*others: RowResults) -> str:
        baseline = RowResults("ours", {}, [])
        return verdict_of_comparison(Comparison(Path(), {}, {}, [baseline, *others], baseline, [0], {}))

    assert said(row("low", -0.1, True), row("high", 0.1, True), row("same", 0.05, False)) == (
        "ours: on own data ahead of low, behind high, not distinguishable from same; "
        "on everyone's data ahead of high, behind low, not distinguishable from same."
    )
    many = [row(f"m{at}", -0.1, True) for at in range(6)]
    assert said(*many).startswith("ours: on own data ahead of m0, m1, m2 and 3 more; ")
    assert said(row("unknown", -0.1, False, low=None)).startswith("No interval tells ours from another row")
    assert said() == ""


def test_classes_and_confusion_count_every_answer_of_every_client(reported: Path) -> None:
    by_class = {row["class"]: row for row in read_csv(reported / "figures" / "classes.csv")}
    assert (by_class["intent 0"]["samples"], by_class["intent 0"]["right"]) == ("11", "0")
    assert (by_class["intent 1"]["samples"], by_class["intent 1"]["right"]) == ("11", "11")
    pairs = {
        (row["class"], row["predicted"]): row["samples"]
        for row in read_csv(reported / "figures/confusion.csv")
    }
    assert pairs["intent 0", "intent 1"] == "11" and ("intent 0", "intent 0") not in pairs
    assert len(pairs) == 20


def test_of_many_classes_the_most_confused_pairs_are_shown() -> None:
    names = [f"class {at:02}" for at in range(30)]
    wrong = [predicted("a", name, names[0], "x", "y") for name in names[1:]]
    run = run_of([*wrong, *(predicted("a", names[5], names[6], "x", "y") for _ in range(3))])
    picture, bars = confusion(run), classes(run)
    assert picture is not None and bars is not None
    assert picture.hovers[-1].text == "class 05 → class 06: 3 of 4 samples"
    assert len(picture.hovers) == 25 and "25 of 30 pairs" in picture.caption
    assert "The 25 lowest of 29 classes" in bars.caption
    assert confusion(run_of([])) is None and classes(run_of([])) is None


def test_disagreement_shows_the_largest_first_and_who_is_right() -> None:
    some = [predicted("a", "x", "x", "x", "x", 0.1), predicted("b", "x", "x", "y", "x", 0.9)]
    page = Page(disagreement(run_of(some)))
    assert page.cells[:8] == ["b", "7", "x", "x", "y", "x", "25.0 %", "0.900"]
    assert (
        "differently for 1 of 2 samples. There, right answers come from the mixture for 100.0 %, "
        "the global expert for 0.0 %, the local expert for 100.0 %." in disagreement(run_of(some))
    )
    assert "the same answer for all 1 samples" in disagreement(run_of(some[:1]))
    alone = Predicted("a", "0", "x", "x", None, None, None, None)
    assert disagreement(run_of([alone])) == ""


@pytest.mark.parametrize(
    "content",
    [
        "",
        "row,label\n1,a\n",
        "row,label,predicted,local_weight\n1,a\n",
        "\0",
        "row,label,predicted,local_weight\n1,a,b,7\n",
    ],
)
def test_predictions_that_are_damaged_are_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "clients" / "a" / "predictions.csv"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert read_predictions(tmp_path, ["b", "../a", None]) == []
    with pytest.raises(FedmsError, match=r"predictions\.csv: damaged"):
        read_predictions(tmp_path, ["a"])


def test_marks_say_their_values_where_a_reader_points(reported: Path) -> None:
    titles = [
        unescape(title)
        for title in re.findall(r"<title>(.*?)</title>", (reported / "report.html").read_text())
    ]
    assert "prior 1: own data 93.5 %, everyone's data 42.0 %" in titles
    assert "intent 0 → intent 1: 11 of 11 samples" in titles
    counts = json.loads((reported / "result.json").read_text())["partition"]["counts"]
    at = next(at for at, count in enumerate(counts[1]) if count)
    assert f"client-01, intent {at}: {counts[1][at]} samples" in titles


def test_the_commands_to_copy_are_commands(reported: Path, compared: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = [
        unescape(text)
        for folder in (reported, compared)
        for text in re.findall(r"<dd><pre>(.*?)</pre></dd>", (folder / "report.html").read_text(), re.DOTALL)
    ]
    lines = [shlex.split(text) for text in shown]
    assert {line[1] for line in lines if line[0] == "fedms"} >= {"compare", "report", "predict", "export"}
    for line in lines:
        if line[0] == "fedms":
            known[line[1]].make_context(line[1], line[2:])  # an unknown option or a missing argument raises


def test_cards_and_pictures_fill_their_rows() -> None:
    assert all(
        f"--columns: {columns}" in cards("x" * count) for count, columns in ((4, 4), (9, 3), (10, 5), (7, 4))
    )

    class Shape:
        def __init__(self, wide: bool) -> None:
            self.wide = wide

    one, two, three, wide = Shape(False), Shape(False), Shape(False), Shape(True)
    assert _in_rows([one, wide, two, three]) == [one, two, wide, three]  # type: ignore[list-item,comparison-overlap]


def test_a_link_leads_to_a_file_whatever_its_name() -> None:
    assert (
        table([], [[Link("<a>", 'x "1".csv')]]).count('<td><a href="x%20%221%22.csv">&lt;a&gt;</a></td>') == 1
    )
