"""Watchers of a run: their output, and that their display ends."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fedms.experiments.console import (
    WORDS,
    Live,
    PlainLines,
    Remaining,
    default_observer,
    headline,
    observer,
)
from fedms.experiments.observers import Silent
from fedms.federation.exchanges import EXCHANGES

CONFIG = SimpleNamespace(method="fedms", seed=3)
PLAN = [{"stage": "global", "rounds": 4}, {"stage": "local", "rounds": 2}]
FACTS: dict[str, Any] = {
    "clients": 12,
    "classes": 20,
    "samples": 2000,
    "blocks": 6,
    "model": "minilm",
    "workers": 2,
    "plan": PLAN,
}


def record(stage: str, at: int, seconds: float | None = 2.0, **more: Any) -> dict[str, Any]:
    rounds = {"statistics": 0, "global": 4, "local": 2, "end": 0}[stage]
    values = {
        "active_blocks": 2,
        "train_loss": 0.5,
        "validation_score": 0.75,
        "failures": [],
        "seconds": seconds,
    }
    return {"stage": stage, "round": at, "rounds": rounds, **values, **more}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_comes_from_the_rounds_of_each_stage() -> None:
    clock = Clock()
    left = Remaining(PLAN, clock)
    assert str(left) == "–" and left.done == 0 and left.total == 6
    left.round_done(record("statistics", 0, 9.0))
    assert left.seconds() is None  # the time of statistics is no measure for training
    left.round_done(record("global", 1, 10.0))
    assert left.seconds() == pytest.approx(5 * 10)
    left.round_done(record("global", 2, 20.0))
    assert left.seconds() == pytest.approx(4 * 15)
    clock.now += 7
    assert left.seconds() == pytest.approx(4 * 15 - 7) and str(left) == "0:53"
    for at in (3, 4):
        left.round_done(record("global", at, 15.0))
    left.round_done(
        record("statistics", 0, 1.0)
    )  # a gate on features of the global expert needs a second exchange
    assert left.done == 4
    left.round_done(record("local", 1, 100.0))
    assert left.seconds() == pytest.approx(100)
    left.round_done(record("local", 2, 100.0))
    assert left.done == 6 and str(left) == "0:00"
    left.round_done(record("end", 0, 50.0))
    assert left.done == 6


def test_without_measured_seconds_the_clock_counts_and_hours_show() -> None:
    clock = Clock()
    left = Remaining(PLAN, clock)
    clock.now = 1000.0
    left.round_done(record("global", 1, None))
    assert left.seconds() == pytest.approx(5000) and str(left) == "1:23:20"


def test_a_resumed_run_counts_what_went_before() -> None:
    left = Remaining(PLAN, Clock())
    left.round_done(record("global", 3, 10.0))
    assert left.done == 3 and left.seconds() == pytest.approx(30)


def test_a_stage_that_was_not_planned_does_no_harm() -> None:
    left = Remaining([], Clock())
    left.round_done({"stage": "extra"})
    assert str(left) == "–" and left.done == 0


def test_plain_lines_are_one_a_round_without_escape_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainLines() as watcher:
        watcher.begin(CONFIG, FACTS)
        watcher.round_done(record("statistics", 0, validation_score=None, train_loss=None))
        watcher.round_done(
            record("global", 1, failures=[{"kind": kind} for kind in ("died", "error", "died")])
        )
        watcher.note("a note")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "fedms (seed 3) on minilm: 12 clients, 20 classes, 2,000 samples, 6 blocks, 2 workers",
        "statistics  blocks 2  score –  loss –  2.0 s  left –",
    ]
    assert lines[2].startswith("global 1/4  blocks 2  score 0.7500  loss 0.500  2.0 s  left 0:") and lines[
        3:
    ] == ["a note"]
    assert lines[2].endswith("failed: 2 died, 1 error")


def test_plain_lines_bear_a_record_with_nothing_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    PlainLines().round_done({})
    assert capsys.readouterr().out.count("\n") == 1


def test_the_live_bar_ends_even_when_the_run_fails(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Live()
    with pytest.raises(RuntimeError), watcher:
        watcher.begin(CONFIG, FACTS)
        watcher.round_done(record("global", 2, failures=["client-1"]))
        watcher.note("[red]a note")
        assert watcher._progress.tasks[0].completed == 2 and watcher._progress.tasks[0].total == 6
        raise RuntimeError
    assert not watcher._progress.live.is_started
    shown = capsys.readouterr().out
    assert "[red]a note" in shown and "global 2/4" in shown


def test_the_live_bar_says_what_is_computed_and_rounds_stay(capsys: pytest.CaptureFixture[str]) -> None:
    with Live() as watcher:
        watcher.begin(CONFIG, FACTS)
        for done in range(3):
            watcher.progress("statistics", done, 3)
        assert watcher._progress.tasks[0].description == "features: client 3 of 3"
        watcher.round_done(record("global", 1))
        watcher.progress("train", 0, 2)
        assert watcher._progress.tasks[0].description == "training: client 1 of 2"
    assert "global 1/4  blocks 2  score 0.7500  loss 0.500" in capsys.readouterr().out


def test_words_are_of_kinds_of_questions() -> None:
    assert set(WORDS) <= set(EXCHANGES) and {"statistics", "train", "test"} <= set(WORDS)


def test_the_live_bar_bears_a_plan_of_nothing() -> None:
    with Live() as watcher:
        watcher.begin(CONFIG, {})
        watcher.round_done({})


def test_the_watcher_fits_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(observer(quiet=True)) is Silent
    assert isinstance(observer(quiet=False), PlainLines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert isinstance(observer(quiet=False), Live)


def test_a_notebook_shows_a_line_for_each_round_and_a_script_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shells: list[Any] = [None, SimpleNamespace(), SimpleNamespace(kernel="a kernel")]
    found = []
    for shell in shells:
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        found.append(type(default_observer()))
    monkeypatch.delitem(sys.modules, "IPython")
    assert [*found, type(default_observer())] == [Silent, Silent, PlainLines, Silent]


def test_the_silent_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Silent() as watcher:
        watcher.begin(CONFIG, FACTS)
        watcher.round_done(record("global", 1))
        watcher.note("x")
    assert capsys.readouterr().out == ""


def test_the_headline_bears_missing_facts() -> None:
    assert headline(object(), {}) == "run (seed –) on –: "
