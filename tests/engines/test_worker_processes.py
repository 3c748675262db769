"""Worker processes: they import what the parent imports and nothing more, and end with it however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedms
from fedms.engines import process
from fedms.engines.imports import describe_imports
from fedms.engines.local import LocalEngine
from fedms.engines.process import WORKER
from fedms.federation.messages import Task, Update
from fedms.federation.world import open_world
from quick_workers import plain_spawn

SOURCE = Path(fedms.__file__).parent
EXECUTED = "print('EXECUTED', __name__); raise SystemExit('my own script')\n"


@pytest.fixture(autouse=True)
def interpreters_of_their_own(monkeypatch):
    monkeypatch.setattr(process, "_spawn", plain_spawn)


def statistics(*clients: str) -> list[Task]:
    settings = {"active": [], "boundary": 3, "features": "backbone"}
    return [Task("statistics", client, "statistics", 0, settings=settings) for client in clients]


# imports


@pytest.fixture
def users_folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with modules whose names others need."""
    folder = tmp_path / "mine"
    (folder / "datasets").mkdir(parents=True)
    for name in ("random.py", "torch.py", "yaml.py", "queue.py", "datasets/__init__.py"):
        (folder / name).write_text(EXECUTED)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("first", [None, ""], ids=["from elsewhere", "a notebook"])
def test_a_module_in_the_users_folder_is_not_executed(
    settings, tmp_path, users_folder, monkeypatch, capfd, first
):
    """A notebook has its folder first on the path, but had loaded all that it needed before."""
    if first is not None:
        monkeypatch.setattr(sys, "path", [first, *sys.path])
    with LocalEngine(open_world(settings("engine.workers=2")), tmp_path / "run") as engine:
        answers = engine.run(statistics("client-0", "client-1"))
    assert all(isinstance(answer, Update) for answer in answers)
    assert "EXECUTED" not in "".join(capfd.readouterr())


def started(path: list[str], homes: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A worker with this import path, in this current folder, and no config."""
    theirs, ours = os.pipe()
    command = [sys.executable, "-P", str(WORKER), str(theirs), "run", "0", "1"]
    sent = json.dumps({"path": path, "homes": homes}) + "\n"
    done = subprocess.run(
        command, input=sent, cwd=folder, pass_fds=(theirs,), text=True, capture_output=True, check=False
    )
    os.close(theirs)
    os.close(ours)
    return done


def test_the_parents_path_is_taken_over_in_its_order(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "yaml.py").write_text(
            f"import json, os, sys\nprint({name!r}, json.dumps(sys.path), flush=True)\nos._exit(3)\n"
        )
    path = [str(tmp_path / "two"), str(tmp_path / "one"), *sys.path]
    done = started(path, {}, tmp_path / "one")
    assert (done.returncode, done.stderr) == (3, f"two {json.dumps(path)}\n"), "text goes to standard error"
    done = started(path, {"yaml": str(tmp_path / "one")}, tmp_path)
    assert done.stderr == f"one {json.dumps(path)}\n", "the parent had loaded it from another folder"


def test_what_a_worker_is_told_of_imports():
    told = json.loads(describe_imports())
    assert told["path"] == sys.path
    assert told["homes"]["fedms"] == str(SOURCE.parent)
    assert told["homes"]["random"] == str(Path(os.__file__).parent)
    assert not {"__main__", "sys", "fedms.core"} & told["homes"].keys()


def parent(script: str, tmp_path: Path, config: str, patch: tuple[str, str]) -> subprocess.Popen[str]:
    """A process that imports a copy of fedms, to one file of which a text is added, and runs this script."""
    shutil.copytree(SOURCE, tmp_path / "copy" / "fedms", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "copy" / "fedms" / patch[0]).open("a") as file:
        file.write(patch[1])
    (tmp_path / "config.yaml").write_text(config)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "copy")!r})
from pathlib import Path
import fedms
from fedms.engines.local import LocalEngine
from fedms.federation.messages import Task
from fedms.federation.world import open_world
if __name__ == "__main__":
    engine = LocalEngine(open_world(fedms.load_config({str(tmp_path / "config.yaml")!r})), Path("run"))
{script}
"""
    (tmp_path / "script.py").write_text(code)
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def test_a_worker_uses_the_parents_copy_of_fedms(settings, tmp_path):
    patch = ("engines/memory.py", "\n\ndef peak_memory():\n    return 5\n")
    script = "    print(engine.peak_memory())\n    engine.close()"
    run = parent(script, tmp_path, settings("engine.workers=2").to_yaml(), patch)
    assert run.communicate()[0] == "15\n", "this process and two workers"


# the end of the parent

BUSY = """

def respond(host, message):
    import re
    print("busy", flush=True)
    re.match("(a+)+b", 100 * "a")  # takes for ever, and lets no other thread of Python run
"""
ASK = """
    print(*(worker.process.pid for worker in engine.processes), flush=True)
    for worker in engine.processes:
        worker.peak_memory()
    print("ready", flush=True)
    engine.run([Task("statistics", name, "statistics", 0) for name in engine.world.clients])
"""
IDLE = ASK[: ASK.index("    engine.run")] + "    __import__('time').sleep(600)"
ENDS = [(ASK, signal.SIGKILL), (ASK, signal.SIGHUP), (IDLE, signal.SIGKILL)]


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a worker ends when Python lets its listener run"
)
@pytest.mark.parametrize(("script", "number"), ENDS, ids=["busy, killed", "busy, hung up", "idle, killed"])
def test_workers_are_gone_within_a_second_of_their_parent(settings, tmp_path, script, number, capfd):
    run = parent(script, tmp_path, settings("engine.workers=2").to_yaml(), ("engines/host.py", BUSY))
    assert run.stdout is not None
    workers = [Path("/proc") / pid for pid in run.stdout.readline().split()]
    assert run.stdout.readline() == "ready\n" and len(workers) == 2
    said = ""
    end = time.monotonic() + 60
    while script is ASK and said.count("busy") < 2:
        assert time.monotonic() < end, said
        said += capfd.readouterr().err
        time.sleep(0.05)
    assert run.poll() is None and all(worker.exists() for worker in workers)
    run.send_signal(number)
    assert run.wait(60) == -number
    end = time.monotonic() + 1
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < end, "a worker lives on"
        time.sleep(0.01)
    run.stdout.close()


def alive(process: Path) -> bool:
    """Whether the process runs: one that has ended may wait for its new parent to see that."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_worker_that_starts_after_its_parents_end_ends_at_once(tmp_path):
    theirs, ours = os.pipe()
    os.close(ours)
    command = [sys.executable, "-P", str(WORKER), str(theirs), "run", "0", "1"]
    done = subprocess.run(
        command, pass_fds=(theirs,), capture_output=True, cwd=tmp_path, timeout=60, check=False
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, b"")
