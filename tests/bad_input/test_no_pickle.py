"""Nothing that is loaded can run code: neither in our source, nor in the libraries while fedms uses them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fedms

UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "zipfile",
    "tarfile",
}
UNSAFE_CALLS = {
    "torch.load",
    "eval",
    "exec",
    "compile",
    "__import__",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "shutil.unpack_archive",
}


def unsafe(tree: ast.AST) -> list[str]:
    """Imports and calls that could run what a file says, or unpack it to where it says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [module for module in modules if module.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.Call):
            name, said = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            wrong = (
                name in UNSAFE_CALLS
                or said.get("allow_pickle", "False") != "False"
                or said.get("trust_remote_code", "False") != "False"
            )
            wrong |= name == "yaml.load" and ast.unparse(node.args[-1]) != "_Loader"  # which is a safe one
            wrong |= name.endswith(".from_pretrained") and said.get("trust_remote_code") != "False"
            wrong |= name in ("np.load", "numpy.load") and said.get("allow_pickle") != "False"
            found += [ast.unparse(node)] if wrong else []
    return found


def test_no_source_file_loads_what_could_run_code():
    files = sorted(Path(fedms.__file__).parent.rglob("*.py"))
    assert len(files) > 20
    assert {path.name: found for path in files if (found := unsafe(ast.parse(path.read_text("utf-8"))))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import tarfile",
        "torch.load(p)",
        "torch.load(p, weights_only=True)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=None)",
        "AutoModel.from_pretrained(p)",
        "yaml.load(t, yaml.Loader)",
        "yaml.unsafe_load(t)",
        "eval(t)",
        "shutil.unpack_archive(p)",
    ],
)
def test_the_search_for_unsafe_loading_finds_it(line):
    assert unsafe(ast.parse(line))


WATCH = '''
import os, sys

def watch(event, args):
    """Python says of itself when an unpickler looks for what to call, and when a file is opened."""
    name = os.fspath(args[0]) if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)) else ""
    name = os.fsdecode(name)
    pickles = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")
    if event == "pickle.find_class" or name.endswith(pickles):
        with os.fdopen(os.open(os.environ["TRIPPED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as file:
            file.write(f"{event} {args[:2]}\\n")

sys.addaudithook(watch)
'''


def watched(tmp_path: Path, *command: str) -> str:
    """What a real process and its children unpickled, or opened of files that are read with pickle."""
    (tmp_path / "watch").mkdir(exist_ok=True)
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join([str(tmp_path / "watch"), str(Path(fedms.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "TRIPPED": str(tmp_path / "tripped")}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return (tmp_path / "tripped").read_text() if (tmp_path / "tripped").exists() else ""


def test_all_that_can_be_done_with_a_run_unpickles_nothing(good, tmp_path, checkpoint):
    config = yaml.safe_load(good)
    config["engine"]["workers"] = 2
    config["cache"]["memory_mb"] = 0  # so that the disk's is used, too
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(config))
    for name in ("pytorch_model.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"cos\nmkdir\n(S'executed'\ntR.")
    fedms_command = "-m", "fedms.cli"
    assert watched(tmp_path, *fedms_command, "run", "good.yaml", "--out", "run") == ""
    assert watched(tmp_path, *fedms_command, "predict", "run", "--client", "client-0", "play music") == ""
    assert watched(tmp_path, *fedms_command, "export", "run", "--client", "client-0", "--to", "there") == ""
    assert watched(tmp_path, *fedms_command, "report", "run") == ""


@pytest.mark.parametrize(
    "line", ["import pickle; pickle.loads(pickle.dumps(OSError))", "open('x.pt', 'wb'); open('x.pt', 'rb')"]
)
def test_the_watch_would_see_it(tmp_path, line):
    assert watched(tmp_path, "-c", line) != ""
