"""Fixtures to check that a command refuses bad input: one line, the exit code, and no file changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from holding import Refused, one_line, tree
from typer.testing import CliRunner

from fedms.cli.main import app
from tiny_run import finished, run_config, write_texts  # noqa: F401 (a fixture)


@pytest.fixture(scope="session")
def good(checkpoint, tmp_path_factory) -> str:
    """A valid config."""
    source = tmp_path_factory.mktemp("data") / "texts.csv"
    write_texts(source)
    return run_config(checkpoint("bert"), source).to_yaml()


@pytest.fixture
def place(good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a valid config. The folder `outside` beside it must not change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("mine")
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "good.yaml").write_text(good)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(place: Path) -> Refused:
    """Run a command that must fail, and return its error line."""

    def hold(arguments: list[str], code: int, *says: str, given: str | bytes | None = None) -> str:
        before = tree(place.parent)
        done = CliRunner().invoke(app, arguments, input=given)
        assert done.exit_code == code, done.output
        line = one_line(done.stderr, *says)
        assert done.stdout == ""
        assert tree(place.parent) == before
        return line

    return hold
