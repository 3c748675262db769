"""The documentation as a site: the pages that are made, and the strict build where mkdocs is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from documents import ROOT

from fedms.cli.main import app


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hooks that make pages."""
    found = importlib.util.spec_from_file_location("made_pages", ROOT / "bench" / "pages.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_page_of_commands_has_every_command_and_option(made):
    page = made.commands()
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        part = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert " ".join(command.help.split()) in " ".join(part.split())
        for parameter in command.params:
            names = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
            assert parameter.name == "help" or all(each in part for each in names), (name, parameter.name)


def test_links_out_of_the_docs_become_words_and_others_hold(made):
    text = "[a](docs/config.md#gate) [b](examples) [c](#x) ![d](docs/pictures/e.svg) [f](https://g.h)"
    assert made.inside(text, "") == "[a](config.md#gate) b [c](#x) ![d](pictures/e.svg) [f](https://g.h)"
    assert made.inside(text, "", "reference").startswith("[a](../config.md#gate) b [c](../index.md#x)")
    back = "[a](../../README.md#start) [b](../config.md) [c](../../src/x.py)"
    assert made.inside(back, "docs/howto") == "[a](../index.md#start) [b](../config.md) c"
    assert "config.yaml" in made.section((ROOT / "README.md").read_text(), "The run folder")


def test_every_page_has_a_place_in_the_navigation():
    listed = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in listed


def test_the_site_is_built_without_a_warning(tmp_path: Path):
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "fedms.runs.predict.load" in (tmp_path / "reference" / "python.html").read_text()
    for page in ("index", "tutorial", "reference/commands", "reference/run-folder", "howto/gpu"):
        assert (tmp_path / f"{page}.html").stat().st_size > 5000
    assert (tmp_path / "notebooks" / "personal-model.ipynb").exists()
