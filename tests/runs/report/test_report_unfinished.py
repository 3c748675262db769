"""Reports of runs and comparisons that are not finished: what is there, and a line that says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from reading import Page, stands_alone
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.config import load_config
from fedms.core.errors import FedmsError
from fedms.experiments.comparison.so_far import so_far
from fedms.runs.reading.run import read_run
from fedms.runs.report.comparison.page import write_comparison_report
from fedms.runs.report.run.page import write_report

Make = Callable[..., Path]


def cut(folder: Path, lines: int) -> Path:
    """The run as a kill leaves it: no result, and a line that is half written."""
    (folder / "result.json").unlink()
    metrics = folder / "metrics.jsonl"
    whole = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(whole[:lines]) + whole[lines][:20])
    return folder


def test_a_run_that_was_cut_shows_what_is_there_and_says_so(make_run: Make) -> None:
    folder = cut(make_run("run $x"), 5)
    html = write_report(folder).read_text(encoding="utf-8")
    stands_alone(html, folder)
    assert "4 rounds so far (the last: global 4 of 10); there are no test figures yet." in html
    assert {path.stem for path in (folder / "figures").glob("*.csv")} == {"score", "loss", "blocks"}
    assert "global 4" in Page(html).cells and "Own data</h3>" not in html
    assert f"fedms run &#x27;{folder}/config.yaml&#x27; --out &#x27;{folder}&#x27; --resume" in html


def test_a_run_that_has_only_begun_is_a_page(make_run: Make) -> None:
    folder = make_run()
    for path in folder.iterdir():
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
    html = write_report(folder).read_text(encoding="utf-8")
    assert "No round so far; there are no test figures yet." in html and "nothing to draw" in html


def test_only_a_report_reads_a_run_that_is_not_finished(make_run: Make) -> None:
    folder = cut(make_run(), 5)
    with pytest.raises(FedmsError, match="not a finished run"):
        read_run(folder)
    with pytest.raises(FedmsError, match="not a finished run"):
        read_run(folder / "clients", unfinished=True)  # no run at all
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert f"{folder}: not finished, 4 rounds so far\nreport  {folder}/report.html\n" == done.output


@pytest.fixture
def begun(make_comparison: Make) -> Path:
    """Two of four runs of a comparison, both of seed 0."""
    folder = make_comparison(rows=["fedms", "local"], seeds=[0])
    (folder / "comparison.json").unlink()
    for at, name in enumerate(("fedms", "local")):
        (folder / "runs" / f"row{at}-0").rename(folder / "runs" / f"{name}-0")
    config = load_config({"compare": {"methods": ["fedms", "local", "fedavg"], "seeds": [0, 1]}})
    (folder / "comparison.yaml").write_text(config.to_yaml())
    return folder


def test_a_comparison_that_goes_on_shows_the_rows_that_have_runs(begun: Path) -> None:
    html = write_comparison_report(begun, so_far(begun)).read_text(encoding="utf-8")
    stands_alone(html, begun)
    assert (
        "This comparison is not finished: 2 of 6 runs so far; no run yet of fedavg. "
        "Rows may stand on different seeds." in html
    )
    assert {"fedms", "local", "runs/local-0"} <= set(Page(html).cells)
    assert f"fedms compare {begun}/comparison.yaml --out {begun}" in html
    assert not (begun / "comparison.json").exists()
    done = CliRunner().invoke(app, ["report", str(begun)])
    assert done.exit_code == 0 and "0.880" in done.output and "2 of 6 runs so far" in done.output


def test_a_comparison_without_a_finished_run_is_one_line(begun: Path) -> None:
    shutil.rmtree(begun / "runs")
    done = CliRunner().invoke(app, ["report", str(begun)])
    assert done.exit_code == 1
    assert done.stderr == f"error: {begun}: no run of this comparison is finished yet\n"
