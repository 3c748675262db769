"""What the shell proposes."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedms.cli.main import app


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ("fedms run --method fedavg-f", "fedavg-finetune"),
        ("fedms run assi", "assistant"),
        ("fedms partition mi", "mine.yaml"),
        ("fedms run --set gate.pri", "gate.prior="),
        ("fedms config gate.pri", "gate.prior"),
        ("fedms predict runs/demo --client li", "lights-0"),
    ],
)
def test_tab_proposes_names(tmp_path, monkeypatch, words, proposed):
    monkeypatch.chdir(tmp_path)
    Path("runs/demo/clients/lights-0").mkdir(parents=True)
    Path("mine.yaml").touch()
    asked = {
        "_FEDMS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = CliRunner().invoke(app, [], env=asked, prog_name="fedms")
    assert proposed in result.stdout.split()
