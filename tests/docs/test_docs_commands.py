"""Every command of the documents is right: all are parsed by the real command line, and all are run at a tiny
size that need no network, GPU, other machine or hours.
"""

from __future__ import annotations

import csv
import json
import re
import runpy
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import INLINE, PAGES, ROOT, blocks, commands, lines_of, name_of, python_files, words_of
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.experiments import api
from fedms.federation.methods import METHODS
from tiny_text import llama, write_speeches  # noqa: F401

TINY = {
    "model.max_length": 16,
    "data.limit": 300,
    "partition.min_samples": 3,
    "federation.rounds_global": 1,
    "federation.rounds_local": 1,
    "federation.cohort": 2,
    "federation.cohort_local": 2,
    "gate.epochs": 1,
    "evaluation.everyone": 20,
    "engine.workers": 1,
}
"""What every command that takes a config is given beside its own keys; and the tiny model."""
LESS = {
    "fedms compare": ["--methods", "statistics,fedncm", "--seeds", "0"],
}
"""Options that replace those of a command, by how it begins."""
NOT_RUN = {
    "make ": "installs, or takes hours; its target is looked up",
    "pip ": "installs from a package index",
    "python": "benchmarks of hours; the file is looked up",
    "uvicorn ": "a server that does not end, of a package that fedms does not need",
    "tail -f": "a file that never ends",
    "fedms run assistant --device cuda": "a GPU",
    "fedms deploy": "needs the extra flower; tests/flower runs it",
    "fedms keys": "needs the extra flower; tests/flower runs it",
    "fedms serve": "a server that does not end; tests/flower runs it",
    "fedms site": "a site that does not end; tests/flower runs it",
    "fedms run experiment.yaml": "sites on other machines",
    "fedms predict /srv/fedms": "the folder of a site",
    "fedms export /srv/fedms": "the folder of a site",
    "fedms join runs/first": "sites on other machines",
}
"""Commands that are only parsed, by how they begin, and why."""
RUN = [page for page in PAGES if any(language == "sh" for language, _ in blocks(page))]
group: Any = typer.main.get_command(app)


def reason(line: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), None)


def corpus(domain: str) -> list[dict[str, str]]:
    text = files("fedms.data").joinpath("corpus", f"{domain}.csv").read_text(encoding="utf-8")
    return [*csv.DictReader(text.splitlines())]


def write_table(path: Path, columns: dict[str, str], rows: list[dict[str, str]]) -> None:
    """A table of rows of the corpus, under other names of columns."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns.values())
        table.writerows([[row[name] for name in columns] for row in rows])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that the pages take for granted."""
    monkeypatch.chdir(tmp_path)
    lights = corpus("lights")
    plain = {"text": "text", "intent": "label"}
    write_table(Path("requests.csv"), {"text": "message"}, lights[:4])
    write_table(Path("labelled.csv"), {"text": "message", "intent": "intent"}, lights[:8])
    write_table(Path("tickets.csv"), {"text": "message", "intent": "topic"}, lights)
    write_table(Path("attic.csv"), {"text": "text", "intent": "intent"}, lights[:30])
    write_table(Path("homes/north.csv"), plain, lights[:60])
    write_table(Path("homes/south.csv"), plain, lights[60:120])
    write_speeches(Path("talk.csv"))
    Path("examples").symlink_to(ROOT / "examples")

    def no_report(folder: Path) -> Path:  # reports have tests of their own
        path = Path(folder) / "report.html"
        path.write_text("")
        return path

    monkeypatch.setattr(api, "write_report", no_report)
    path, methods = [*sys.path], dict(METHODS)
    yield tmp_path
    sys.path[:] = path  # a plug-in lies beside its config
    sys.modules.pop("my_method", None)
    for name in METHODS.keys() - methods.keys():
        del METHODS[name]


def intents() -> str:
    """All classes of the corpus, of which few samples may lack some."""
    domains = [path.stem for path in (ROOT / "src/fedms/data/corpus").glob("*.csv")]
    return json.dumps(sorted({row["intent"] for domain in domains for row in corpus(domain)}))


def smaller(words: list[str], model: Path, causal: Path) -> list[str]:
    """The words of a command with what makes it tiny."""
    if words[0] not in ("run", "compare", "partition"):
        return words
    of_text = "talk.yaml" in words
    keys: dict[str, Any] = TINY | (
        {"model.name": causal} if of_text else {"model.name": model, "data.classes": intents()}
    )
    if of_text or "homes.yaml" in words:
        del keys["data.limit"]
    if "privacy.secure_sum=true" in words:  # needs three clients
        keys |= {"federation.cohort": 3, "federation.cohort_local": 3}
    if "statistics.least=5" in words:  # some validation split must be as large
        keys |= {"data.limit": 1200, "partition.validation": 0.3}
    sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    return [*words, *LESS.get(f"fedms {words[0]}", []), *sets]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_the_command_line_takes(page):
    for line in commands(page):
        for words in words_of(line):
            if words[0] == "make":
                target = next(word for word in words[1:] if "=" not in word)
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            elif words[0] == "python" and words[1].endswith(".py"):
                assert (ROOT / words[1]).exists(), line
            elif words[0] == "fedms":
                assert words[1] in group.commands, line
                group.commands[words[1]].make_context(words[1], [w for w in words[2:] if w != "..."])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_in_a_sentence_is_one_of_its_command(page):
    for found in INLINE.finditer(page.read_text()):
        words = found[1].split()
        if words[1] not in group.commands:
            continue
        known = {name for each in group.commands[words[1]].params for name in each.opts}
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", found[1]))
        assert named <= known | {"--help", "--debug"}, found[1]


def test_every_reason_not_to_run_is_used():
    lines = [line for page in PAGES for line in commands(page)]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), start


@pytest.mark.integration
@pytest.mark.parametrize("page", RUN, ids=name_of)
@pytest.mark.usefixtures("place")
def test_the_commands_of_a_page_run_in_their_order(page, checkpoint, llama):  # noqa: F811
    written = python_files(page)
    for name, text in written.items():
        Path(name).write_text(text)
    if "make_table.py" in written:
        runpy.run_path("make_table.py")
    lines = [line for language, text in blocks(page) if language == "sh" for line in lines_of(text)]
    for line in lines:
        if reason(line):
            continue
        for words in words_of(line):
            assert words[0] == "fedms", line
            result = CliRunner().invoke(app, smaller(words[1:], checkpoint("bert"), llama))
            assert result.exit_code == 0, f"{line}\n{result.output}"
    if "service.py" in written:
        check_service()


def check_service() -> None:
    """The function that the tutorial's app calls, and the app itself where FastAPI is installed."""
    answer = runpy.run_path("service.py")["answer"]("dim the lamp")
    topics = {row["topic"] for row in csv.DictReader(Path("requests.csv").read_text().splitlines())}
    assert answer["topic"] in topics and 0 < answer["probability"] <= 1 and 0 <= answer["own_weight"] <= 1
    compile(Path("app.py").read_text(), "app.py", "exec")
