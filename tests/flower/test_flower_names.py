"""What fedms takes from flwr exists in the installed version. Without flwr, everything else still works."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from fedms.core.errors import ConfigError, FedmsError
from fedms.engines.flower.processes import EXTRA
from fedms.experiments.comparison.compare import compare
from fedms.experiments.experiment import run
from test_architecture import SOURCE, imports

MAY_IMPORT_FLWR = {"internal.py", "grid.py", "app.py"}


def test_only_three_files_import_flwr():
    using = {path.name for path in SOURCE.rglob("*.py") if "from flwr" in path.read_text(encoding="utf-8")}
    assert using == MAY_IMPORT_FLWR
    assert "fedms.engines.flower.internal" in imports()  # the names above are of files that exist


def test_the_core_comes_up_without_flwr():
    loads = "import sys; sys.modules['flwr'] = None; import fedms.cli.main, fedms.experiments.api"
    done = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_without_flwr_ends_in_one_line(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.setitem(sys.modules, "flwr.app", None)
    for name in ("grid", "internal"):
        monkeypatch.delitem(sys.modules, f"fedms.engines.flower.{name}", raising=False)
    with pytest.raises(FedmsError, match="flwr is not installed; install the extra"):
        run(settings("engine.name=flower"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert EXTRA.endswith("'fedms[flower]'")


def test_a_comparison_is_for_one_machine(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"engine\.name: must be local for a comparison, not flower"):
        compare(settings("engine.name=flower"), tmp_path / "compared")
    assert not (tmp_path / "compared").exists()


def test_the_internal_names_exist():
    pytest.importorskip("flwr", reason="needs the extra fedms[flower]")
    internal = importlib.import_module("fedms.engines.flower.internal")  # imports every name, or fails here
    grid = internal.HttpGrid("127.0.0.1:1", True, None, token="none")
    assert hasattr(grid, "_retry_invoker") and hasattr(type(grid), "_runtime_client")
    assert hasattr(internal.RetryInvoker, "invoke")
    content, _ = internal.build_fab_from_files(internal.APP)
    assert content.startswith(b"PK")
    client = internal._client("127.0.0.1:1", None)
    assert hasattr(client, "_retry_invoker")
    client.close()
