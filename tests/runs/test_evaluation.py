"""The figures of an evaluation, on answers whose figures are known, and on a finished run."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict

import pytest
from PIL import Image
from typer.testing import CliRunner

import fedms
from fedms.cli.main import app
from fedms.core.errors import FedmsError
from fedms.federation.evaluation import evaluate
from tiny_run import finished  # noqa: F401 (a fixture)

runner = CliRunner()


def test_figures_by_hand():
    labels = ["a", "a", "a", "b", "c"]
    answers, probabilities = ["a", "a", "b", "b", "b"], [0.9, 0.9, 0.5, 1.0, 0.5]
    found = evaluate(["c", "unseen", "b", "a"], labels, answers, probabilities)
    assert (found.samples, found.accuracy) == (5, 0.6)
    assert [*found.classes] == ["c", "b", "a"]
    assert found.confusion == [[0, 1, 0], [0, 1, 0], [0, 1, 2]]
    c, b, a = found.classes.values()
    assert (c.samples, c.predicted, c.precision, c.recall, c.f1) == (1, 0, 0, 0, 0)
    assert (b.samples, b.predicted, b.precision, b.recall) == (1, 3, pytest.approx(1 / 3), 1)
    assert (a.samples, a.predicted, a.precision, a.recall) == (3, 2, 1, pytest.approx(2 / 3))
    assert found.macro_f1 == pytest.approx((0 + 0.5 + 0.8) / 3)
    # bins: two right at .9, two wrong at .5, one right at 1
    assert found.calibration_error == pytest.approx((2 * 0.1 + 2 * 0.5 + 0) / 5)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (
            ["play music"],
            ["dance"],
            "label 1: 'dance' is none of the model's 4 classes: lights_off, lights_on",
        ),
        (["play music"], ["music", "music"], "2 labels for 1 inputs: each input needs one label"),
        ([], [], "there are no samples to evaluate on"),
    ],
)
def test_labels_that_do_not_fit(finished, texts, labels, message):  # noqa: F811
    client = fedms.load(finished(), "client-0")
    with pytest.raises(FedmsError, match=message):
        client.evaluate(texts, labels)


def test_the_command_says_what_the_client_says(finished, tmp_path):  # noqa: F811
    texts = ["turn on the light", "play music", "louder please", "turn off the light"]
    labels = ["lights_on", "music", "volume", "volume"]
    rows = "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True))
    (tmp_path / "in.csv").write_text(f"message,intent\n{rows}")
    asked = ["evaluate", finished(), "--client", "client-1", "--input", tmp_path / "in.csv"]
    asked = [*map(str, asked), "--column", "message", "--label", "intent", "--prior", "0.3"]
    done = runner.invoke(app, [*asked, "--output", str(tmp_path / "metrics.json")])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "metrics.json").read_text())
    expected = fedms.load(finished(), "client-1").evaluate(texts, labels, prior=0.3)
    assert (written["client"], written["prior"]) == ("client-1", 0.3)
    assert written["accuracy"] == expected.accuracy
    assert written["calibration_error"] == expected.calibration_error
    assert written["confusion"] == expected.confusion
    assert [*written["classes"]] == [*expected.classes]
    assert f"accuracy {100 * expected.accuracy:.1f} %" in done.stdout
    assert all(name in done.stdout for name in expected.classes)
    again = runner.invoke(app, [*asked, "--output", str(tmp_path / "metrics.json")])
    assert again.exit_code == 1 and "is already there" in again.stderr


def test_the_class_of_a_picture_is_its_folder(finished, tmp_path):  # noqa: F811
    for label in ("dark", "bright"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (40, 40), "black").save(tmp_path / label / "0.png")
    asked = ["evaluate", str(finished(family="vit")), "--client", "client-0", "--input", str(tmp_path)]
    done = runner.invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "samples 2  accuracy 50.0 %" in done.stdout
    Image.new("RGB", (40, 40)).save(tmp_path / "loose.png")
    done = runner.invoke(app, asked)
    assert done.exit_code == 1 and "loose.png: lies in no sub-folder, so it has no class" in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--label", "gone"], 1, "in.csv: no column 'gone' for --label; columns: text, label"),
        ([], 2, "--label: is missing: it names a column of "),
        (["--label", "label"], 1, "in.csv: row 2: 'dance' is none of the model's 4 classes"),
        (["--label", "label", "--output", "metrics.csv"], 2, "--output metrics.csv: must end in .json"),
    ],
)
def test_a_line_for_what_cannot_be(finished, tmp_path, options, code, message):  # noqa: F811
    (tmp_path / "in.csv").write_text("text,label\nplay music,music\nplay music,dance\n")
    asked = ["evaluate", finished(), "--client", "client-0", "--input", tmp_path / "in.csv"]
    done = runner.invoke(app, [*map(str, asked), "--column", "text", *options])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert message in done.stderr


@pytest.mark.parametrize("changes", [{}, {"method": "fedavg"}, {"family": "vit"}])
def test_each_client_keeps_the_predictions_of_its_test(finished, changes):  # noqa: F811
    run = finished(**changes)
    for reported in json.loads((run / "result.json").read_text())["per_client"]:
        folder = run / "clients" / reported["name"]
        with (folder / "predictions.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        kept = json.loads((folder / "metrics.json").read_text())
        hits = sum(row["label"] == row["predicted"] for row in rows)
        assert kept["samples"] == len(rows) > 0
        assert kept["accuracy"] == hits / len(rows) == pytest.approx(reported["accuracy_local"])
        alone = ("local_weight", "global_predicted", "local_predicted", "disagreement")
        if reported["gate_global_share"] is None:
            assert {row[key] for row in rows for key in alone} == {""}
        else:
            assert all(0 <= float(row["disagreement"]) <= 1 for row in rows)
            mean = sum(float(row["local_weight"]) for row in rows) / len(rows)
            assert 1 - mean == pytest.approx(reported["gate_global_share"], abs=1e-5)
        columns = [row["label"] for row in rows], [row["predicted"] for row in rows]
        classes = json.loads((run / "result.json").read_text())["partition"]["classes"]
        again = evaluate(classes, *columns, [float(row["probability"]) for row in rows])
        assert kept == {"client": reported["name"], "prior": kept["prior"], **asdict(again)}


def test_what_each_expert_says_alone_is_what_it_says_at_both_ends_of_the_prior(finished):  # noqa: F811
    run = finished()
    frontier = json.loads((run / "result.json").read_text())["frontier"]
    files = [path.read_text().splitlines() for path in sorted(run.glob("clients/*/predictions.csv"))]
    for point, column in ((frontier[0], "global_predicted"), (frontier[-1], "local_predicted")):
        shares = []
        for lines in files:
            hits = [row["label"] == row[column] for row in csv.DictReader(lines)]
            shares.append(sum(hits) / len(hits))
        assert sum(shares) / len(shares) == pytest.approx(point["accuracy_local"], abs=1e-6)
