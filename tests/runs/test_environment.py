"""environment.json says what a result was made with."""

import shutil
import subprocess
from pathlib import Path

import fedms.runs.environment
from fedms.config import load_config
from fedms.runs.environment import describe_environment


def in_work_tree(folder: Path, monkeypatch, tracked: bool = True) -> Path:
    """A new git work tree that contains the package's module; the package now takes it for its own."""
    module = Path(shutil.copy(fedms.runs.environment.__file__, folder))
    who = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    (folder / "other.txt").write_text("here\n")
    for command in (
        ["init", "-q"],
        ["add", "." if tracked else "other.txt"],
        [*who, "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    monkeypatch.setattr(fedms.runs.environment, "__file__", str(module))
    return module


def test_it_says_whether_the_work_tree_differs_from_its_commit(tmp_path, monkeypatch):
    module = in_work_tree(tmp_path, monkeypatch)
    said = describe_environment(load_config({}), 1)
    assert len(said["git_commit"]) == 40 and said["git_dirty"] is False
    module.write_text(module.read_text() + "\n")
    changed = describe_environment(load_config({}), 1)
    assert changed["git_commit"] == said["git_commit"] and changed["git_dirty"] is True


def test_an_installed_copy_says_nothing_of_the_work_tree_around_it(tmp_path, monkeypatch):
    in_work_tree(tmp_path, monkeypatch, tracked=False)
    said = describe_environment(load_config({}), 1)
    assert said["git_commit"] is None and said["git_dirty"] is None
