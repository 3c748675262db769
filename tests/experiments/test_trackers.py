"""What trackers are told is the content of metrics.jsonl and result.json, every line once."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.config import load_config
from fedms.core.errors import FedmsError
from fedms.experiments.first_stage import first_stage_settings
from fedms.experiments.trackers import SUMS, Mlflow, TensorBoard, Tracker, Wandb
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
    events = TensorBoard(folder, load_config({}))
    for number in (1, 2, 3):
        folder.append_metrics(record(number))
        events.round_done(record(number))
    # killed here: resumption removes the last line and may report the others again, then repeats the round
    events = TensorBoard(folder, load_config({}))
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    events.round_done(record(2))
    folder.append_metrics(record(7))
    events.round_done(record(7))
    same(tmp_path)
    assert scalars(tmp_path)["uplink_bytes"] == [(1, 1), (2, 3), (3, 10)]


def told(tracker: Tracker, folder: RunFolder) -> None:
    """Two rounds and a result."""
    for number in (1, 2):
        folder.append_metrics(record(number))
        tracker.round_done(record(number))
    tracker.end({"method": "fedms", "accuracy_local": 0.5})


def test_weights_and_biases_is_told_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    told(Wandb(folder, load_config({})), folder)
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    for text in (b"global/validation_score", b"uplink_bytes", b"result/accuracy_local", b"lora"):
        assert text in content
    assert [path.name for path in folder.path.iterdir()] == [
        "metrics.jsonl"
    ]  # its files link out of a folder


def test_mlflow_is_told_on_disk(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    folder = RunFolder(tmp_path)
    tracker = Mlflow(folder, load_config({}))
    told(tracker, folder)
    client = tracking.MlflowClient((tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("fedms")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "uplink_bytes")
    assert [(point.step, point.value) for point in history] == [(1, 1), (2, 3)]
    assert run.data.metrics["result/accuracy_local"] == 0.5 and run.data.params["method"] == "fedms"
    assert run.info.status == "FINISHED"


def test_a_tracker_that_fails_is_one_line(tmp_path):
    class Broken(Tracker):
        name = "broken"

        def write(self, values: dict[str, float], step: int) -> None:
            raise ConnectionError("no\nnetwork")

        def close(self) -> None:
            raise AssertionError("it was never open")

    folder = RunFolder(tmp_path)
    folder.append_metrics(record(1))
    with pytest.raises(FedmsError, match=r"^log.broken: no network; the run can be resumed without it$"):
        Broken(folder).round_done(record(1))


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_without_the_extra_it_is_one_line_that_says_how_and_nothing_is_written(
    name, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("quick.yaml").write_text(f"log: {{{name}: true}}\n")
    monkeypatch.setattr("fedms.experiments.trackers.find_spec", lambda name: None)
    done = CliRunner().invoke(app, [command, "quick.yaml"])
    assert done.exit_code == 1
    assert (
        done.stderr.count("\n") == 1
        and done.stderr.startswith("error: ")
        and f"pip install 'fedms[{name}]'" in done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["quick.yaml"]


def test_the_key_says_nothing_of_what_a_run_comes_to():
    assert first_stage_settings(load_config({})) == first_stage_settings(
        load_config({}, ["log.tensorboard=true"])
    )
