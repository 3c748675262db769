"""TensorBoard's event files have the content of metrics.jsonl and result.json, every line once."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.config import load_config
from fedms.experiments.first_stage import first_stage_settings
from fedms.experiments.tensorboard import SUMS, Events
from fedms.runs.folder import RunFolder
from tiny_run import finished  # noqa: F401 (a fixture)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.jsonl and result.json."""
    out: dict[str, list[tuple[int, float]]] = {}
    sums: Counter[str] = Counter()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for step, line in enumerate(lines, 1):
        for key in SUMS:
            sums[key] += line[key]
            out.setdefault(key, []).append((step, sums[key]))
        out.setdefault("active_blocks", []).append((step, line["active_blocks"]))
        out.setdefault("failures", []).append((step, len(line["failures"])))
        for key in ("train_loss", "validation_score"):
            if line[key] is not None:
                out.setdefault(f"{line['stage']}/{key}", []).append((step, line[key]))
    result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return out | {f"result/{key}": [(len(lines), value)] for key, value in numbers.items()}


def same(folder: Path) -> None:
    found, wanted = scalars(folder), expected(folder)
    assert found.keys() == wanted.keys()
    for tag, points in wanted.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        assert [value for _, value in found[tag]] == pytest.approx(
            [value for _, value in points], rel=1e-6
        ), tag


@pytest.mark.integration
def test_the_events_of_a_run_are_its_metrics_and_its_result(finished):  # noqa: F811
    folder = finished(log__tensorboard=True)
    same(folder)
    assert {
        "global/validation_score",
        "local/train_loss",
        "uplink_bytes",
        "result/accuracy_local",
    } <= scalars(folder).keys()


def record(number: int) -> dict:
    sums = dict.fromkeys(SUMS, number)
    return {
        "stage": "global",
        "active_blocks": 1,
        "failures": [],
        "train_loss": None,
        "validation_score": number / 10,
        **sums,
    }


def test_a_run_that_goes_on_has_no_line_twice(tmp_path):
    pytest.importorskip("tensorboard")
    folder = RunFolder(tmp_path)
    events = Events(folder)
    for number in (1, 2, 3):
        folder.append_metrics(record(number))
        events.round_done(record(number))
    # killed here: resumption removes the last line and may report the others again, then repeats the round
    events = Events(folder)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    events.round_done(record(2))
    folder.append_metrics(record(7))
    events.round_done(record(7))
    same(tmp_path)
    assert scalars(tmp_path)["uplink_bytes"] == [(1, 1), (2, 3), (3, 10)]


@pytest.mark.parametrize("command", ["run", "compare"])
def test_without_the_extra_it_is_one_line_that_says_how_and_nothing_is_written(
    command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("quick.yaml").write_text("log: {tensorboard: true}\n")
    monkeypatch.setattr("fedms.experiments.tensorboard.find_spec", lambda name: None)
    done = CliRunner().invoke(app, [command, "quick.yaml"])
    assert done.exit_code == 1
    assert (
        done.stderr.count("\n") == 1
        and done.stderr.startswith("error: ")
        and "pip install 'fedms[tensorboard]'" in done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["quick.yaml"]


def test_the_key_says_nothing_of_what_a_run_comes_to():
    assert first_stage_settings(load_config({})) == first_stage_settings(
        load_config({}, ["log.tensorboard=true"])
    )
