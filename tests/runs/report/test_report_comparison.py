"""The report of a comparison: every row and every number in it, whatever is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE, ROWS
from reading import Page, follows_the_theme, identifiers_resolve, looks_drawn, read_csv, stands_alone
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.core.errors import FedmsError
from fedms.runs.reading.comparison import read_comparison, unlikeness
from fedms.runs.report.comparison.page import write_comparison_report

PICTURES = ("frontier", "gate", "rounds", "clients", "blocks", "partition")
Make = Callable[..., Path]
Record = dict[str, Any]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def html(compared: Path) -> str:
    return (compared / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def record(compared: Path) -> Record:
    loaded: Record = json.loads((compared / "comparison.json").read_text(encoding="utf-8"))
    return loaded


def change(folder: Path, edit: Callable[[Record], Any]) -> Path:
    """Edit a folder's comparison.json."""
    path = folder / "comparison.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    edit(record)
    path.write_text(json.dumps(record), encoding="utf-8")
    return folder


def drawn(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "figures").glob("*.csv")}


def test_the_report_stands_alone(html: str, compared: Path) -> None:
    stands_alone(html, compared)
    identifiers_resolve(html)
    follows_the_theme(html, pictures=len(PICTURES))


def test_every_row_is_there_and_names_are_text(html: str) -> None:
    page = Page(html)
    assert not page.tags & {"b", "i", "many"}
    for name in ROWS:
        assert page.cells.count(name) >= 3  # in the results, in what was run, and in each run
    assert "&lt;b&gt;x&lt;/b&gt; $\\frac$" in html


def test_every_picture_says_in_words_what_it_shows(html: str) -> None:
    spoken = [value for tag, name, value in Page(html).attributes if tag == "svg" and name == "aria-label"]
    assert len(spoken) == len(PICTURES) and all(len(text) > 40 for text in spoken)
    assert "fedms 87.8 % and 78.6 %" in spoken[0]


def test_the_results_say_what_the_comparison_says(html: str, record: Record) -> None:
    cells = Page(html).cells
    for method in record["methods"]:
        mean, spread, at = method["mean"], method["std"], cells.index(method["name"])
        own = f"{100 * mean['accuracy_local']:.1f} ± {100 * spread['accuracy_local']:.1f} %"
        assert cells[at + 1] == ("" if method["best"]["accuracy_local"] == "best" else "≈ ") + own
        assert (
            cells[at + 3] == f"{100 * mean['accuracy_global']:.1f} ± {100 * spread['accuracy_global']:.1f} %"
        )
        assert cells[at + 5 : at + 10] == ["12.3 MB", "23.5 MB", "4.56 TFLOP", "2 min 8 s", "0.22 %"]
    best = record["methods"][-1]
    mean, spread = (100 * best[key]["accuracy_local"] for key in ("mean", "std"))
    assert f"<strong>{mean:.1f} ± {spread:.1f} %</strong>" in html


def test_differences_come_with_their_interval(html: str) -> None:
    page = Page(html)
    at = [at for at, cell in enumerate(page.cells) if cell == HOSTILE][1]
    assert page.cells[at + 1 : at + 5] == ["−1.2", "−2.0 to −0.5", "< 0.001", "−1.2"]
    # on own data only: on everyone's data the difference is not distinguishable
    assert html.count("<strong>−1.2</strong>") == len(ROWS) - 1


def test_what_was_run_is_told(html: str) -> None:
    cells = Page(html).cells
    assert cells[cells.index("versions") + 1] == "fedms 0.1.0, torch 2.13.0"
    assert (
        "gate.prior 0.9" in cells and "training.local_learning_rate 0.003" in cells and "runs/row0-0" in cells
    )
    assert "training.local_learning_rate:\n" in html and "source: assistant" in html


def test_every_picture_is_files_that_are_not_blank(compared: Path) -> None:
    written = {path.name for path in (compared / "figures").iterdir()}
    assert written == {f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg", "csv")}
    for name in PICTURES:
        looks_drawn(compared / "figures" / name)


def test_the_numbers_of_the_frontier_are_those_of_the_comparison(compared: Path, record: Record) -> None:
    rows = read_csv(compared / "figures" / "frontier.csv")
    for method in record["methods"]:
        own = [row for row in rows if row["row"] == method["name"]]
        assert float(own[0]["accuracy_local"]) == method["mean"]["accuracy_local"]
        assert float(own[0]["accuracy_global_sd"]) == method["std"]["accuracy_global"]
        assert [
            {key: float(point[key]) for key in ("prior", "accuracy_local", "accuracy_global")}
            for point in own[1:]
        ] == method["frontier"]


def test_the_numbers_over_rounds_are_those_of_the_runs(compared: Path) -> None:
    lines = [
        json.loads(line) for line in (compared / "runs" / "row0-0" / "metrics.jsonl").read_text().splitlines()
    ]
    rows = [row for row in read_csv(compared / "figures" / "rounds.csv") if row["row"] == "fedms"]
    scored = [line for line in lines if line["validation_score"] is not None]
    assert [float(row["validation_score"]) for row in rows] == pytest.approx(
        [line["validation_score"] for line in scored]
    )
    assert [row["stage"] for row in rows] == [line["stage"] for line in scored]
    assert float(rows[0]["uplink_bytes"]) == 2 * 900_000  # the exchange of statistics also counts
    assert float(rows[-1]["uplink_bytes"]) == 14 * 900_000
    assert {row["row"] for row in read_csv(compared / "figures" / "blocks.csv")} == set(ROWS)


def test_the_numbers_of_clients_are_those_of_the_results(compared: Path, record: Record) -> None:
    expected = {
        (str(run["seed"]), client["name"]): (client["accuracy_local"], client["gate_global_share"])
        for run in record["runs"]
        if run["row"] == "fedms"
        for client in run["result"]["per_client"]
    }
    shown = {
        (row["seed"], row["client"]): float(row["fedms"])
        for row in read_csv(compared / "figures" / "clients.csv")
    }
    assert shown == {key: accuracy for key, (accuracy, _) in expected.items()}
    shares = {
        (row["seed"], row["client"]): float(row["gate_global_share"])
        for row in read_csv(compared / "figures" / "gate.csv")
    }
    assert shares == {key: share for key, (_, share) in expected.items()}


def test_unlikeness_is_the_total_variation() -> None:
    assert unlikeness([[1, 0], [0, 1]]) == [0.5, 0.5]
    assert unlikeness([[2, 2], [5, 5], [0, 0]]) == [0, 0, 0.5]


def test_one_row_and_one_seed(make_comparison: Make) -> None:
    folder = make_comparison(rows=["fedms"], seeds=[0])
    page = write_comparison_report(folder).read_text(encoding="utf-8")
    stands_alone(page, folder)
    assert drawn(folder) == set(PICTURES)
    assert "Against fedms" not in page and "±" not in Page(page).cells[1]


def test_as_many_rows_as_there_may_be(make_comparison: Make) -> None:
    rows = ["fedms", *(f"method {n} $x_{n}$" for n in range(24))]
    folder = make_comparison(rows=rows, seeds=[0], clients=3)
    page = write_comparison_report(folder).read_text(encoding="utf-8")
    stands_alone(page, folder)
    assert len(page) < 2_000_000
    assert set(rows) <= set(Page(page).cells)
    assert drawn(folder) == set(PICTURES)
    key = (folder / "figures" / "frontier.svg").read_text(encoding="utf-8")
    assert "method 23 $x_23$" in key


def test_a_row_far_off_makes_a_close_up_of_the_others(make_comparison: Make) -> None:
    folder = make_comparison(rows=["fedms", "far $off$", "near"], seeds=[0], clients=3)
    change(
        folder, lambda record: record["methods"][1]["mean"].update(accuracy_local=0.05, accuracy_global=0.02)
    )
    page = write_comparison_report(folder).read_text(encoding="utf-8")
    assert drawn(folder) == {*PICTURES, "frontier-near"}
    assert {row["row"] for row in read_csv(folder / "figures" / "frontier-near.csv")} == {"fedms", "near"}
    assert "Outside: far $off$." in page
    identifiers_resolve(page)


def test_what_is_missing_is_left_out(make_comparison: Make) -> None:
    folder = make_comparison(mean={}, std={}, versus_baseline={"accuracy_local": None}, best={}, frontier=[])
    change(folder, lambda record: record.update(tuning={}, environment={}, config={}, seeds=[]))
    change(folder, lambda record: [run.update(result={}) for run in record["runs"]])
    for run in (folder / "runs").iterdir():
        lines = [
            json.loads(line) | {"validation_score": None, "active_blocks": None}
            for line in (run / "metrics.jsonl").open()
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_comparison_report(folder).read_text(encoding="utf-8")
    assert drawn(folder) == set() and "nothing to draw" in page
    assert Page(page).cells[:4] == ["fedms", "–", "–", "–"]


def test_single_nulls_do_no_harm(make_comparison: Make) -> None:
    folder = make_comparison(seeds=[0])

    def edit(record: Record) -> None:
        record["methods"][1]["mean"]["accuracy_global"] = None
        record["methods"][0]["frontier"][3]["accuracy_local"] = None
        for client in record["runs"][0]["result"]["per_client"][:2]:
            client["accuracy_local"] = client["gate_global_share"] = None

    write_comparison_report(change(folder, edit))
    assert drawn(folder) == set(PICTURES)
    assert len(read_csv(folder / "figures" / "gate.csv")) == 4


def test_runs_that_are_gone_take_only_their_rounds_with_them(make_comparison: Make) -> None:
    folder = make_comparison(seeds=[0])
    shutil.rmtree(folder / "runs")
    write_comparison_report(folder)
    assert drawn(folder) == set(PICTURES) - {"rounds", "blocks"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"methods": 3}', b'{"methods": [1]}', b"\xff"]
)
def test_a_damaged_comparison_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "comparison.json").write_bytes(content)
    with pytest.raises(FedmsError) as caught:
        write_comparison_report(tmp_path)
    assert (
        "damaged" in str(caught.value)
        and "\n" not in str(caught.value)
        and "comparison.json" in str(caught.value)
    )
    assert not (tmp_path / "report.html").exists()


def test_no_comparison_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FedmsError, match="not a finished comparison"):
        read_comparison(tmp_path)
    with pytest.raises(FedmsError, match="no such folder"):
        read_comparison(tmp_path / "nowhere")


def test_the_command_writes_reports_of_comparisons_and_of_runs(make_comparison: Make) -> None:
    folder = make_comparison(rows=["fedms"], seeds=[0])
    run = folder / "runs" / "row0-0"
    result = CliRunner().invoke(app, ["report", str(folder), str(run)])
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").exists() and (run / "report.html").exists()
    assert result.output.count("report  ") == 2 and "0.8800" in result.output


def test_pictures_are_pdf_files_where_that_is_asked_for(make_comparison: Make) -> None:
    folder = make_comparison(rows=["fedms"], seeds=[0], clients=2)
    asked = ["report", str(folder), "--format", "pdf"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    written = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert written.keys() >= {"frontier.pdf", "rounds.pdf", "gate.pdf"}
    assert all(name.endswith(".pdf") and content.startswith(b"%PDF") for name, content in written.items())
    assert done.output.splitlines() == [f"picture  {folder}/figures/{name}.pdf" for name in PICTURES]
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 0
    assert written == {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert not (folder / "report.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
def test_a_browser_opens_the_page_with_nothing_to_complain_about(compared: Path, reported: Path) -> None:
    for folder in (compared, reported):
        assert _complaints(folder / "report.html") == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
def test_on_a_phone_tables_scroll_and_the_page_does_not(compared: Path, tmp_path: Path) -> None:
    measure = (
        "const page = frames[0].document.documentElement; "
        "document.title = 'hidden ' + (page.scrollWidth - page.clientWidth)"
    )
    source, look = (compared / "report.html").as_uri(), "width:390px;height:800px;border:0"
    frame = f'<iframe src="{source}" style="{look}" onload="{measure}"></iframe>'
    (tmp_path / "phone.html").write_text(frame)
    page = _browse(tmp_path / "phone.html", "--allow-file-access-from-files").stdout
    assert "<title>hidden 0</title>" in page


def _complaints(page: Path) -> list[str]:
    return [line for line in _browse(page).stderr.splitlines() if "CONSOLE" in line]


def _browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
        *options,
    ]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
