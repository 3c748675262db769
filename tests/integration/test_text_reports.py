"""Comparisons and reports of `task: text`: losses, of which less is better."""

import csv
import io
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from fedms import compare
from fedms.core.errors import ConfigError
from fedms.experiments.comparison.compare import choose
from fedms.experiments.comparison.rows import rows
from fedms.experiments.console import Remaining, headline, round_line
from fedms.federation.methods import METHODS
from fedms.runs.frames import Result
from fedms.runs.reading.comparison import read_comparison
from fedms.runs.report.comparison.publishing import WRITERS
from fedms.runs.report.comparison.tables import comparison_table
from fedms.runs.report.run.page import write_report
from fedms.runs.report.tables import OF_TEXT, result_rows
from tiny_text import llama, speeches, text_config  # noqa: F401


@pytest.fixture(scope="module")
def compared(llama, speeches, tmp_path_factory):  # noqa: F811
    """FedMS and one model for all, on two seeds, with a report."""
    folder = tmp_path_factory.mktemp("text") / "compared"
    compare(text_config(llama, speeches), ["fedms", "fedavg"], [0, 1], folder)
    return folder


def test_the_best_row_is_the_one_of_the_lowest_loss(compared):
    said = json.loads((compared / "comparison.json").read_text())
    fedms, fedavg = said["methods"]
    losses = {row["name"]: row["mean"]["nll_local"] for row in said["methods"]}
    lowest = min(losses, key=lambda name: losses[name])
    assert [row["name"] for row in said["methods"] if row["best"]["nll_local"] == "best"] == [lowest]
    difference = fedavg["versus_baseline"]["nll_local"]["difference"]
    assert difference == pytest.approx(losses["fedavg"] - losses["fedms"]) and difference != 0
    assert {*fedms["frontier"][0]} == {"prior", "nll_local", "nll_global"}
    runs = [run["result"] for run in said["runs"] if run["row"] == "fedms"]
    assert fedms["mean"]["perplexity_local"] == pytest.approx(
        sum(run["perplexity_local"] for run in runs) / 2
    )


def test_tables_say_that_less_is_better_and_show_perplexities(compared):
    comparison = read_comparison(compared)
    page = WRITERS[".md"](comparison)
    assert "Bold**: the lowest" in page and "lower is better" in page and "in nats" in page
    assert "accuracy of a client's model" not in page
    table = list(csv.DictReader(io.StringIO(WRITERS[".csv"](comparison))))
    for line, run in zip(table, (run for row in comparison.rows for run in row.runs), strict=True):
        assert float(line["perplexity_local"]) == run.result["perplexity_local"]
        assert math.log(float(line["perplexity_global"])) == pytest.approx(float(line["nll_global"]))
    assert "own perplexity" in WRITERS[".tex"](comparison) and "the lowest" in WRITERS[".tex"](comparison)
    heads = [column.header for column in comparison_table(comparison).columns]
    assert "own\nperplexity" in heads and "own\ndata" not in heads


def test_the_pages_are_in_perplexities(compared):
    page = (compared / "report.html").read_text()
    assert "fedms, own data" in page and "lower is better" in page and "Likelihood over rounds" in page
    run = compared / "runs" / "fedms-0"
    one = write_report(run).read_text()
    said = Result.of(run)
    assert f"perplexity {said['perplexity_local']:.1f} on own data" in one and "Right tokens" in one
    for text in (page, one):
        assert "accuracy of a client" not in text.lower() and "highest" not in text.split("<h2>")[1]
    for folder in (compared, run):
        first = (folder / "figures" / "frontier.csv").read_text().splitlines()[0]
        assert first.endswith("perplexity_global,perplexity_local")
    assert f"{said['perplexity_global']:.2f}" in said._repr_html_()


def test_the_terminal_shows_losses(compared):
    result = Result.of(compared / "runs" / "fedms-0")
    cells = dict(zip(OF_TEXT, result_rows([result])[0], strict=True))
    assert cells["own perplexity"] == f"{result['perplexity_local']:.2f}"
    config = SimpleNamespace(task="text", method="fedms", seed=0)
    line = round_line(
        {"stage": "global", "round": 1, "rounds": 2, "validation_score": -2.5}, Remaining([]), True
    )
    assert "validation loss 2.5000" in line
    assert "classes" not in headline(config, {"clients": 3, "classes": 1})


def test_a_comparison_takes_the_methods_that_run_and_refuses_the_others(llama, speeches):  # noqa: F811
    config = text_config(llama, speeches)
    assert [row.name for row in rows(config)] == [
        name for name, method in METHODS.items() if not method.no_text
    ]
    with pytest.raises(
        ConfigError, match=r"^statistics: method: statistics does not run with task: text: it"
    ):
        rows(text_config(llama, speeches, 'compare.methods=["statistics"]'))


def test_tuning_takes_the_lowest_loss_and_the_highest_accuracy(tmp_path):
    tried: list[Any] = []
    for name, loss in (("a", 2.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        said = {"validation": {"nll_local": loss, "accuracy_local": loss}}
        (tmp_path / name / "result.json").write_text(json.dumps(said))
        tried.append((SimpleNamespace(folder=name), {"key": name}))
    assert choose(tmp_path, tried, "nll_local")["chosen"] == {"key": "b"}
    assert choose(tmp_path, tried, "accuracy_local")["chosen"] == {"key": "a"}


def test_a_loss_chooses_only_where_there_is_one(llama, speeches):  # noqa: F811
    text_config(llama, speeches, "compare.criterion=nll_global")
    with pytest.raises(ConfigError, match=r"compare\.criterion: nll_global needs task: text"):
        text_config(
            llama, speeches, "compare.criterion=nll_global", "task=classification",
            "data.prompt=null", "data.answer=null",
        )  # fmt: skip
