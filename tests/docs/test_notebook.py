"""The notebook runs from its first cell to its last, and is stored without outputs."""

import json
import subprocess
import sys

import pytest
from documents import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "personal-model.ipynb"
SMALLER = {
    '"rounds_global": 10, "rounds_local": 3': '"rounds_global": 1, "rounds_local": 1, "cohort": 2',
    '"evaluation": {"everyone": 400}': (
        '"evaluation": {"everyone": 20}, "model": {"name": MODEL}, "engine": {"workers": 1}'
    ),
    "pd.concat(tables)": "pd.concat([table[:40] for table in tables])",
}
"""What is replaced in its cells, so that it takes seconds."""


def cells(kind: str) -> list[str]:
    held = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in held if cell["cell_type"] == kind]


def test_it_holds_no_outputs_and_can_be_read():
    book = json.loads(NOTEBOOK.read_text())
    assert book["nbformat"] == 4 and NOTEBOOK.stat().st_size < 10_000
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            compile("".join(cell["source"]), "cell", "exec")


@pytest.mark.integration
def test_its_cells_run_in_a_fresh_process(checkpoint, tmp_path):
    code = "\n".join(cells("code"))
    for old, new in SMALLER.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    code = f"MODEL = {str(checkpoint('bert'))!r}\n{code}\nprint(len(result.clients), len(result.frontier))\n"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    clients, priors = map(int, found.stdout.split()[-2:])
    assert clients == 10 and priors > 5
    assert (tmp_path / "runs" / "home" / "report.html").exists()
