"""The local engine: the same bytes in this process and in workers, and one line for whatever breaks."""

import io
import os
import re
from pathlib import Path

import pytest
import torch

from fedms.core.errors import FedmsError
from fedms.engines import host as client_side
from fedms.engines import local
from fedms.engines.base import Answer
from fedms.engines.host import handle
from fedms.engines.local import LocalEngine, worker_count
from fedms.engines.pipe import read_message, write_message
from fedms.experiments.experiment import run
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import EXCHANGES
from fedms.federation.messages import Task, Update, encode
from fedms.federation.methods import METHODS
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import open_world
from fedms.runs.folder import RunFolder

NOISE = """
import os, sys
def hook(event, arguments):
    if event == "open" and "fedms.federation.client" in sys.modules:
        os.write(1, b"noise")
sys.addaudithook(hook)
"""
"""A sitecustomize that writes to standard output, by file number, when fedms opens a file."""


@pytest.fixture(autouse=True)
def quiet_debug(monkeypatch):
    monkeypatch.delenv("FEDMS_DEBUG", raising=False)


@pytest.fixture
def engine(settings, tmp_path):
    """An engine of so many workers in its own folder; closed at the end."""
    opened = []

    def make(workers: int) -> LocalEngine:
        opened.append(LocalEngine(open_world(settings(f"engine.workers={workers}")), tmp_path / str(workers)))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def training(engine: LocalEngine, world) -> tuple[list[Task], ...]:
    """Two rounds' tasks of the first stage."""
    server = Server(
        recipe_for(world.config, METHODS["fedms"]), world.backbone, list(world.clients), world.ranks
    )
    server.start_head(world.classes, None)
    server.begin(server.method.stages[0])
    return tuple(
        server.tasks(
            EXCHANGES["train"], server.clients, server.method.stages[0], number, arrays=server.shared
        )
        for number in (1, 2)
    )


# messages between processes


def test_messages_follow_each_other_on_a_stream():
    stream = io.BytesIO()
    for message in (b"one", b"", b"x" * 70_000):
        write_message(stream, message)
    stream.seek(0)
    assert [read_message(stream) for _ in range(4)] == [b"one", b"", b"x" * 70_000, None]


@pytest.mark.parametrize("keep", [0, 5, 8, 12])
def test_a_stream_that_ends_inside_a_message_gives_none(keep):
    stream = io.BytesIO()
    write_message(stream, b"hello")
    assert read_message(io.BytesIO(stream.getvalue()[:keep])) is None


def test_workers_are_as_configured_and_never_more_than_clients(settings, monkeypatch):
    assert [worker_count(settings(f"engine.workers={n}")) for n in (1, 2, 9)] == [1, 2, 3]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert worker_count(settings()) == 2
    assert worker_count(settings("device=cuda")) == 1
    assert worker_count(settings(), parameters=499_999_999) == 2
    assert worker_count(settings(), parameters=500_000_000) == 1, "each worker would hold a copy"
    assert worker_count(settings("engine.workers=2"), parameters=500_000_000) == 2


# worker processes


def test_workers_answer_the_same_bytes_whatever_is_printed_there(
    engine, settings, tmp_path, monkeypatch, capfd
):
    world = open_world(settings())
    here = engine(1)
    rounds = training(here, world)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOISE)
    with monkeypatch.context() as patch:
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join([str(tmp_path / "site"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        )
        there = engine(2)
    arrived: list[Answer] = []
    for turn, tasks in enumerate(rounds):
        mine, theirs = here.run(tasks), there.run(tasks[turn:] + tasks[:turn], arrived.append)
        theirs = theirs[len(tasks) - turn :] + theirs[: len(tasks) - turn]
        assert [update.client for update in theirs] == [task.client for task in tasks]
        assert [encode(update) for update in mine] == [encode(update) for update in theirs]
        assert all(isinstance(update, Update) for update in mine)
    assert len(arrived) == 6
    assert (here.sent, here.received) == (there.sent, there.received)
    assert here.sent == sum(len(encode(task)) for tasks in rounds for task in tasks)
    assert there.peak_memory() > here.peak_memory() * 1.5, "the workers' memory counts, too"
    (failed,) = there.run([Task("dance", "client-0", "global", 1)])
    assert failed.kind == "error" and "no question 'dance'" in failed.reason and "\n" not in failed.reason
    assert "noise" in capfd.readouterr().err, "nothing was printed at all"


def test_a_task_becomes_bytes_when_its_client_is_asked(engine, monkeypatch):
    """So that those of thousands of clients are never there at once."""
    seen = []
    for side in (local, client_side):
        monkeypatch.setattr(side, "encode", lambda value: seen.append(type(value).__name__) or encode(value))
    made = engine(1)
    tasks, _ = training(made, made.world)
    made.run(tasks)
    assert seen == ["Task", "Update"] * len(tasks) and len(tasks) > 1
    assert made.sent == sum(len(encode(task)) for task in tasks)


def test_a_worker_that_was_killed_is_followed_by_another_and_closing_leaves_no_process(engine, settings):
    world = open_world(settings())
    there, here = engine(2), engine(1)
    rounds = training(there, world)
    wanted = [[encode(update) for update in here.run(tasks)] for tasks in rounds]
    assert [encode(update) for update in there.run(rounds[0])] == wanted[0]
    first = [worker.process for worker in there.processes]
    first[1].kill()
    first[1].wait()
    assert [encode(update) for update in there.run(rounds[1])] == wanted[1], (
        "between two rounds it takes no client with it"
    )
    processes = {*first, *(worker.process for worker in there.processes)}
    assert len(processes) == 3
    there.close()
    assert all(process.returncode is not None for process in processes)
    assert not any(Path(f"/proc/{process.pid}").exists() for process in processes)
    with pytest.raises(FedmsError, match="the workers have been closed"):
        there.run(rounds[0])


def test_no_worker_idles_and_none_repeats_anothers_work(engine):
    """A client may go to another worker in each exchange: its prefix and its files are there."""
    there, here = engine(2), engine(1)
    rounds = training(there, there.world)
    for tasks in rounds:
        wanted = [encode(update) for update in here.run(tasks)]
        assert [encode(update) for update in there.run(tasks)] == wanted
    shared = there._folder / "cache" / local.SHARED
    kept = 2 * len(there.world.clients)
    assert len(list(shared.iterdir())) == kept, "of each client the states at both boundaries, once"
    there.close()
    assert not shared.exists()


# clients that fail


@pytest.fixture
def breaking(monkeypatch):
    """Have some clients raise in a kind of task."""

    def put(kind: str, *clients: str, error: BaseException | None = None) -> None:
        exchange = type(EXCHANGES[kind])
        good = exchange.answer

        def broken(self, view, asked):
            if view.client in clients:
                raise error or RuntimeError("the disk\nis full of sand")
            return good(self, view, asked)

        monkeypatch.setattr(exchange, "answer", broken)

    return put


def test_the_round_goes_on_without_a_client_that_fails(settings, tmp_path, breaking):
    breaking("train", "client-1")
    result = run(settings("engine.workers=1"), tmp_path / "run")
    lines = {(line["stage"], line["round"]): line for line in RunFolder(tmp_path / "run").metrics()}
    reason = {"client": "client-1", "kind": "error", "reason": "RuntimeError: the disk"}
    assert lines["global", 1]["failures"] == lines["local", 1]["failures"] == [reason]
    assert lines["end", 0]["failures"] == []
    assert len(result["per_client"]) == 3, "it can still use what the others made"


def test_a_failed_client_has_no_part_in_the_average(settings, tmp_path, breaking, monkeypatch):
    breaking("train", "client-1")
    averaged = []
    good = local.read_answer
    monkeypatch.setattr(
        local, "read_answer", lambda client, data: averaged.append(good(client, data)) or averaged[-1]
    )
    run(settings("engine.workers=1", "method=fedavg-sal", "federation.rounds_global=1"), tmp_path / "run")
    updates = [answer for answer in averaged if isinstance(answer, Update)]
    trained = {update.client: update for update in updates if "block.2.query.lora_A" in update.arrays}
    assert trained.keys() == {"client-0", "client-2"}
    state, _ = RunFolder(tmp_path / "run").stage("global")
    weights = torch.tensor([update.weight for update in trained.values()])
    wanted = sum(
        weight * update.arrays["head.bias"]
        for weight, update in zip(weights / weights.sum(), trained.values(), strict=True)
    )
    torch.testing.assert_close(state["shared/head.bias"], wanted)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("train", r"global round 1, train: 0 of 1 answer needed, after 3 attempts; client-\d failed"),
        ("statistics", "statistics, statistics: 0 of 1 answer needed, after 3 attempts; client-2 failed"),
        ("test", "client-2 could not be tested, so there is no result"),
    ],
)
def test_when_all_fail_the_run_ends_in_one_line(settings, tmp_path, breaking, kind, told):
    breaking(kind, "client-0", "client-1", "client-2")
    with pytest.raises(FedmsError) as caught:
        run(
            settings("engine.workers=1", "federation.rounds_global=1", "head.kind=statistics"),
            tmp_path / "run",
        )
    assert re.fullmatch(rf"{told}: RuntimeError: the disk; go on with --resume", str(caught.value))
    assert not (tmp_path / "run" / "cache").exists()


@pytest.mark.parametrize("kind", ["statistics", "calibrate", "evaluate", "interpolate", "weigh"])
def test_a_client_that_fails_in_anything_else_does_not_end_the_run(settings, tmp_path, breaking, kind):
    breaking(kind, "client-1")
    result = run(settings("engine.workers=1", "head.kind=statistics"), tmp_path / "run")
    failed = [line["failures"] for line in RunFolder(tmp_path / "run").metrics() if line["failures"]]
    assert failed and all(each["client"] == "client-1" for failures in failed for each in failures)
    assert len(result["per_client"]) == 3


def test_a_client_that_cannot_be_tested_is_named_and_there_is_no_result(settings, tmp_path, breaking):
    breaking("test", "client-1")
    with pytest.raises(
        FedmsError, match="client-1 could not be tested, so there is no result: RuntimeError: the disk"
    ) as caught:
        run(settings("engine.workers=1"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "result.json").exists() and not (tmp_path / "run" / "cache").exists()


def test_memory_that_runs_out_is_a_failure_of_the_client_and_an_interrupt_is_not(
    settings, tmp_path, breaking
):
    host = ClientHost(open_world(settings()), tmp_path)
    asked = {"active": [2], "boundary": 2, "validates": False}
    breaking("train", "client-0", error=MemoryError())
    assert b"MemoryError: MemoryError" in handle(
        host, encode(Task("train", "client-0", "global", 1, settings=asked))
    )
    breaking("train", "client-0", error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        handle(host, encode(Task("train", "client-0", "global", 1, settings=asked)))
