"""Every module can be imported where Unix's own modules and signals are not there, as on Windows."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedms.core import files
from fedms.core.errors import FedmsError

WITHOUT_UNIX = """
import pkgutil, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL"):
    delattr(signal, name)
import fedms
for module in pkgutil.walk_packages(fedms.__path__, "fedms."):
    if not module.name.startswith("fedms.engines.flower") and not module.name.endswith("__main__"):
        __import__(module.name)
assert "fedms.cli.interrupt" in sys.modules and "fedms.engines.worker" in sys.modules
"""


def test_every_module_is_imported_without_unix():
    done = subprocess.run([sys.executable, "-c", WITHOUT_UNIX], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_opened_is_locked_by_a_file_beside_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "FOLDERS_OPEN", False)
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        files.locked(folder),
        pytest.raises(FedmsError, match="another process is at work"),
        files.locked(folder),
    ):
        pass
    with files.locked(folder):
        assert not list(folder.iterdir())
