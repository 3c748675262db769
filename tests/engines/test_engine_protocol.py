"""The seam for another engine: bytes to the client's side and back. No client can end a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest
import torch

from fedms.core.errors import StorageError
from fedms.core.files import read_arrays
from fedms.engines import host as client_side
from fedms.engines import registry
from fedms.engines.base import LONGEST_REASON, Answer, Arrived, Engine, read_answer
from fedms.engines.host import respond
from fedms.engines.local import LocalEngine
from fedms.engines.registry import open_engine
from fedms.experiments.experiment import run
from fedms.federation.client import ClientHost
from fedms.federation.messages import Failure, Task, Update, encode
from fedms.federation.world import World, open_world
from fedms.runs.folder import RunFolder


class MailEngine:
    """All that another engine needs: here every message is a file in a letter box."""

    def __init__(self, world: World, folder: Path, prefixes: Path | None = None) -> None:
        self.workers, self.note, self.sent, self.received = 1, "clients answer by mail", 0, 0
        self._host = ClientHost(world, folder)
        self._box = folder / "letter"

    def run(self, tasks: Sequence[Task], arrived: Arrived = lambda answer: None) -> list[Answer]:
        answers = []
        for task in tasks:
            self.sent += self._box.write_bytes(encode(task))
            self.received += self._box.write_bytes(respond(self._host, self._box.read_bytes()))
            answers.append(read_answer(task.client, self._box.read_bytes()))
            arrived(answers[-1])
        return answers

    def peak_memory(self) -> int:
        return 1

    def close(self) -> None:
        self._host.close()
        self._box.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def test_another_engine_comes_to_the_same(settings, tmp_path, monkeypatch):
    config = settings("engine.workers=1")
    wanted = run(config, tmp_path / "local")
    made: dict[str, type[Engine]] = {"local": MailEngine}
    monkeypatch.setattr(registry, "ENGINES", made)
    found = run(config, tmp_path / "mail")
    for key in ("seconds", "evaluation_seconds", "peak_memory_bytes"):
        del wanted[key], found[key]
    assert found == wanted
    files = sorted(path.relative_to(tmp_path / "mail") for path in (tmp_path / "mail").glob("clients/*/*"))
    assert len(files) >= 6
    for each in files:
        if each.suffix != ".safetensors":
            assert (tmp_path / "mail" / each).read_bytes() == (tmp_path / "local" / each).read_bytes()
            continue
        mine, theirs = (read_arrays(tmp_path / name / each)[0] for name in ("mail", "local"))
        assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


def test_the_engine_of_the_config_is_opened(settings, tmp_path):
    with open_engine(open_world(settings("engine.workers=1")), tmp_path) as engine:
        assert isinstance(engine, LocalEngine) and engine.workers == 1 and engine.note == ""


# what comes from a client


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, encode(Task("train", "client-0", "global", 1))])
def test_bytes_that_are_no_answer_are_that_clients_failure(data):
    answer = read_answer("client-0", data)
    assert isinstance(answer, Failure) and (answer.client, answer.kind) == ("client-0", "refused")
    assert answer.reason.startswith("a message cannot be read") and answer.reason.isprintable()


def test_a_clients_reason_is_one_short_printable_line_in_its_own_name():
    sent = Failure("client-1", "error", "a\n\x1b[31mb" + 1000 * "c")
    answer = read_answer("client-0", encode(sent))
    assert isinstance(answer, Failure)
    assert answer.client == "client-0" and answer.reason.isprintable()
    assert answer.reason.startswith("a ") and len(answer.reason) == LONGEST_REASON


def test_no_client_ends_a_run_by_what_it_sends(settings, tmp_path, monkeypatch):
    """Neither by noise nor by the metric that once meant a full disk."""
    honest, asked = client_side.handle, []

    def handle(host: ClientHost, message: bytes) -> bytes:
        answer = honest(host, message)
        asked.append(message)
        if len(asked) == 1:
            return b"noise"
        update = read_answer("", answer)
        assert isinstance(update, Update)
        return encode(Update(update.client, update.arrays, update.weight, update.metrics | {"disk": True}))

    monkeypatch.setattr(client_side, "handle", handle)
    run(settings("engine.workers=1"), tmp_path / "run")
    failures = [failure for line in RunFolder(tmp_path / "run").metrics() for failure in line["failures"]]
    assert [(each["kind"], each["reason"][:24]) for each in failures] == [
        ("refused", "a message cannot be read")
    ]


# the disk of this machine


@pytest.mark.parametrize("keys", [("workers=1",), ("workers=2",), ("workers=2", "stack=3")])
def test_a_failed_disk_of_this_machine_ends_the_run_beside_the_answers(settings, tmp_path, keys):
    config = settings("deterministic=false", *(f"engine.{key}" for key in keys), "head.kind=statistics")
    (tmp_path / "clients").mkdir()
    for name in ("client-0", "client-1", "client-2"):
        (tmp_path / "clients" / name).symlink_to(tmp_path / "unplugged" / name)
    with (
        LocalEngine(open_world(config), tmp_path) as engine,
        pytest.raises(StorageError, match=r"client-\d: cannot be made: "),
    ):
        kept = {"everyone.prior": torch.ones(3)}  # a client writes what it is to keep
        engine.run([Task("train", name, "global", 1, kept) for name in engine.world.clients])
