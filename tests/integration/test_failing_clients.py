"""Clients that raise, die, hang or are late, in any share: a round takes k of n answers, and nobody else
notices.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from misbehaving import Rule
from outcomes import outcome, without_times
from typer.testing import CliRunner

from fedms.cli.main import app
from fedms.core.errors import FedmsError
from fedms.core.files import read_arrays
from fedms.engines import process
from fedms.engines.local import LocalEngine
from fedms.federation.messages import Failure, Task
from fedms.federation.methods import METHODS
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import open_world
from quick_workers import plain_spawn, standing

pytestmark = pytest.mark.integration

VARYING_KEYS = ("kind", "reason", "uplink_bytes", "evaluation_bytes")
"""How an answer was lost, and the bytes in which a client that raises says why: what may differ between ways
of failing."""
ALL = "federation.cohort=4"
DEADLINE = 10
"""Seconds: long beside what a tiny client takes."""


def without(value: Any, keys: tuple[str, ...]) -> Any:
    """The same without these keys, wherever they are."""
    if isinstance(value, dict):
        return {key: without(each, keys) for key, each in value.items() if key not in keys}
    return type(value)(without(each, keys) for each in value) if isinstance(value, list | tuple) else value


def children() -> set[str]:
    """Processes that this one has started and not yet seen to their end, zombies included."""
    found = {
        pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    }
    return found - standing()


def lost(lines: list[dict[str, Any]]) -> dict[tuple[str, int], list[tuple[str, str]]]:
    """By round, each failure's client and kind; there is a reason of one line, too."""
    failures = [failure for line in lines for failure in line["failures"]]
    assert all(
        failure.keys() == {"client", "kind", "reason"} and failure["reason"] and "\n" not in failure["reason"]
        for failure in failures
    )
    return {
        (line["stage"], line["round"]): [(each["client"], each["kind"]) for each in line["failures"]]
        for line in lines
        if line["failures"]
    }


# raise, die, hang, late: one client is lost, and nothing else


WHERE = (
    {"client": "client-1", "kind": "train", "stage": "global", "round": 1},
    {"client": "client-2", "kind": "train", "stage": "local", "round": 1},
    {"client": "client-3", "kind": "test", "times": 1},
)


@pytest.fixture
def raised(misbehave, perform) -> dict[str, Any]:
    """What a run comes to in whose process these clients raise."""
    misbehave(*(Rule("raise", **where) for where in WHERE))
    run = perform(ALL)
    assert lost(run.lines) == {
        ("global", 1): [("client-1", "error")],
        ("local", 1): [("client-2", "error")],
        ("end", 0): [("client-3", "error")],
    }
    return without(outcome(run.folder), VARYING_KEYS)


@pytest.mark.parametrize(
    ("ways", "kinds", "keys"),
    [
        (("die", "leave", "die"), ("died", "died", "died"), ("engine.workers=2",)),
        (
            ("hang", "late", "die"),
            ("deadline", "deadline", "died"),
            ("engine.workers=1", f"federation.deadline_seconds={DEADLINE}"),
        ),
    ],
    ids=["die", "hang"],
)
def test_however_an_answer_is_lost_the_run_comes_to_the_same(misbehave, perform, raised, ways, kinds, keys):
    before = children()
    misbehave(
        *(
            Rule(how, seconds=DEADLINE + 2 if how == "late" else 3600, **where)
            for how, where in zip(ways, WHERE, strict=True)
        )
    )
    run = perform(ALL, *keys)
    assert lost(run.lines) == {
        ("global", 1): [("client-1", kinds[0])],
        ("local", 1): [("client-2", kinds[1])],
        ("end", 0): [("client-3", kinds[2])],
    }
    said = {failure["reason"] for line in run.lines for failure in line["failures"]}
    words = {"die": "its process was ended by SIGKILL", "leave": "its process ended with code 0"}
    assert said == {words.get(way, f"no answer within {DEADLINE} s") for way in ways}
    found = without(outcome(run.folder), VARYING_KEYS)
    assert {**found, "config": ""} == {**raised, "config": ""}
    assert children() == before


def test_a_deadline_that_everybody_meets_changes_nothing(perform, finished):
    run = perform("engine.workers=1", "federation.deadline_seconds=600")
    found, wanted = outcome(run.folder), outcome(finished().folder)
    assert {**found, "config": ""} == {**wanted, "config": ""}


def test_who_dies_among_clients_that_train_together_dies_alone(misbehave, perform):
    misbehave(Rule("die", client="client-1", kind="train", stage="global", round=1))
    run = perform(ALL, "deterministic=false", "engine.stack=4", "engine.workers=2")
    assert lost(run.lines) == {("global", 1): [("client-1", "died")]}


# k of n


MANY = (
    "partition.clients=10",
    "partition.alpha=100",
    "partition.min_samples=5",
    "federation.cohort=4",
    "federation.cohort_local=5",
)


@pytest.mark.parametrize("share", [1, 3, 5, 8])
def test_a_round_takes_as_many_answers_as_it_needs_from_those_who_give_one(misbehave, perform, share):
    """Of ten clients, so many raise whenever they train."""
    bad = {f"client-{3 * number % 10}" for number in range(share)}
    misbehave(*(Rule("raise", client=client, kind="train") for client in bad))
    run = perform(*MANY, "federation.quorum=2", "federation.oversample=1", "federation.attempts=6")
    for line in [*run.rounds("global"), *run.rounds("local")]:
        assert len(line["cohort"]) == len({*line["cohort"]})
        assert {failure["client"] for failure in line["failures"]} == bad & {*line["cohort"]}
        assert all(failure["kind"] == "error" for failure in line["failures"])
        answered = {*line["cohort"]} - bad
        size = 4 if line["stage"] == "global" else 5
        assert 2 <= len(answered) - len(line["surplus"]) <= size
        assert len(answered) - len(line["surplus"]) == size or not line["surplus"]


def test_which_answers_count_does_not_depend_on_the_engine(misbehave, perform):
    """One more is asked than is needed, one raises, and one is slow."""
    keys = (
        "federation.cohort=2",
        "federation.cohort_local=2",
        "federation.oversample=2",
        "federation.quorum=2",
    )
    runs = []
    for workers, slow in ((1, ()), (2, (Rule("late", client="client-0", kind="train", seconds=0.5),))):
        misbehave(Rule("raise", client="client-3", kind="train", round=2), *slow)
        runs.append(perform(*keys, f"engine.workers={workers}"))
    here, there = (outcome(run.folder) for run in runs)
    assert {**here, "config": ""} == {**there, "config": ""}
    assert [len(line["surplus"]) for line in runs[0].lines if line["rounds"]] == [2, 1, 2, 1]


def test_surplus_answers_leave_no_trace_on_the_server(finished, perform):
    """Their bytes are counted, and who sent them is named."""
    spare, alone = perform("method=fedavg-sal", "federation.oversample=1"), finished("method=fedavg-sal")
    for line, wanted in zip(spare.rounds("global"), alone.rounds("global"), strict=True):
        assert line["cohort"][:2] == wanted["cohort"] and line["cohort"][2:] == line["surplus"] != []
        assert line["failures"] == [] and line["uplink_bytes"] > wanted["uplink_bytes"]
    more = ("uplink_bytes", "downlink_bytes", "evaluation_bytes", "cohort", "surplus")
    assert without(outcome(spare.folder)["state"], more) == without(outcome(alone.folder)["state"], more)
    assert without(without_times(spare.result), more) == without(without_times(alone.result), more)


def test_who_was_not_in_the_average_does_not_take_itself_out_of_it(misbehave, perform, traffic):
    """Where clients take themselves out of the mean (fedalt), one whose answer was lost is told of no mean
    that it was in.
    """
    misbehave()
    run = perform(
        "method=fedalt", "federation.cohort=2", "federation.oversample=1", "federation.rounds_local=1"
    )
    trained = {
        line["round"]: {*line["cohort"]} - {*line["surplus"]}
        for line in run.lines
        if line["rounds"] and line["surplus"]
    }
    told = {
        task.client
        for task, _ in traffic.exchanges
        if task.kind == "train" and task.round == 2 and "averaged" in task.settings
    }
    asked = {task.client for task, _ in traffic.exchanges if task.kind == "train" and task.round == 2}
    assert trained and told == asked & trained[1]


# under quorum


def test_a_round_under_quorum_asks_others_and_keeps_what_came_in(misbehave, perform, tiny):
    config = tiny(*MANY)
    world = open_world(config)
    server = Server(recipe_for(config, METHODS["fedms"]), world.backbone, list(world.clients), world.ranks)
    stage = server.method.stages[0]
    cohort, others = server.sampling.cohort(stage, 1), server.sampling.others(stage, 1)
    assert sorted(cohort + others) == sorted(world.clients)
    misbehave(*(Rule("raise", client=client, kind="train", stage="global", round=1) for client in cohort[1:]))
    run = perform(*MANY, "federation.quorum=4")
    line = run.rounds("global")[0]
    assert line["cohort"] == cohort + others[:3], "for three that failed, three others"
    assert lost(run.lines) == {("global", 1): [(client, "error") for client in cohort[1:]]}


def test_those_who_failed_are_asked_again_where_no_others_are_left(misbehave, perform, finished):
    misbehave(Rule("raise", kind="train", stage="global", round=1, times=1))
    run = perform("federation.quorum=2", ALL)
    assert lost(run.lines) == {("global", 1): [(f"client-{number}", "error") for number in range(4)]}
    wanted = finished(ALL)
    assert run.result["accuracy_global"] == wanted.result["accuracy_global"]
    for name in ("after-global.safetensors", "after-local.safetensors"):
        found, aim = (read_arrays(each.folder / "server" / name)[0] for each in (run, wanted))
        assert all((found[key] == aim[key]).all() for key in aim) and found.keys() == aim.keys()


@pytest.mark.parametrize(
    ("kind", "stage", "place", "needed"),
    [("train", "global", "global round 2", "2 answers"), ("statistics", None, "statistics", "1 answer")],
)
def test_a_run_that_stays_under_quorum_stops_and_can_be_gone_on_with(
    misbehave, tiny, finished, tmp_path, kind, stage, place, needed
):
    """All others fail, however often they are asked; when they behave again, it comes to what it would have
    come to.
    """
    bad = [f"client-{number}" for number in range(3 if stage else 4)]
    misbehave(
        *(Rule("raise", client=client, kind=kind, round=2 if stage else None, stage=stage) for client in bad)
    )
    (tmp_path / "tiny.yaml").write_text(tiny("federation.quorum=2").to_yaml())
    command = ["run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.output
    assert done.stderr.startswith(
        f"error: {place}, {kind}: {1 if stage else 0} of {needed} needed, after 3 attempts; client-"
    )
    assert "RuntimeError: as it was told; go on with --resume" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["round"] == (2 if stage else 0) and lines[-1]["train_loss"] is None
    assert sorted(each["client"] for each in lines[-1]["failures"]) == sorted(bad if stage else 3 * bad), (
        "of every attempt"
    )
    misbehave()
    done = CliRunner().invoke(app, [*command, "--resume"])
    assert done.exit_code == 0, done.output
    found, wanted = outcome(tmp_path / "run"), outcome(finished().folder)
    found["files"] = [name for name in found["files"] if not name.startswith(("figures", "report"))]
    assert {**found, "config": ""} == {**wanted, "config": ""}


def test_a_client_that_cannot_be_tested_is_asked_as_often_as_allowed(misbehave, perform):
    misbehave(Rule("raise", client="client-1", kind="test", times=2))
    assert lost(perform().lines) == {("end", 0): [("client-1", "error")] * 2}
    misbehave(Rule("raise", client="client-1", kind="test"))
    with pytest.raises(
        FedmsError,
        match=r"^client-1 could not be tested, so there is no result: RuntimeError: as it was told; "
        "go on with --resume",
    ):
        perform()


def test_a_run_may_be_gone_on_with_more_patience(misbehave, tiny, finished, tmp_path):
    """Whose deadline is too short for anybody must not be stuck with it."""
    (tmp_path / "tiny.yaml").write_text(tiny("engine.workers=2").to_yaml())
    command = [
        sys.executable,
        "-m",
        "fedms.cli",
        "run",
        str(tmp_path / "tiny.yaml"),
        "--out",
        str(tmp_path / "run"),
        "--quiet",
        "--resume",
    ]
    misbehave(Rule("hang", kind="statistics"))
    hasty = ("--set", "federation.deadline_seconds=0.05", "--set", "federation.attempts=1")
    done = subprocess.run([*command, *hasty], capture_output=True, text=True, check=False)
    assert (
        done.returncode == 1
        and done.stderr.count("\n") == 1
        and "was too late: no answer within 0.05 s" in done.stderr
    ), done.stderr
    misbehave()
    resumed = CliRunner().invoke(app, [*command[3:], "--set", "engine.workers=1"])
    assert resumed.exit_code == 0, resumed.output
    assert (
        json.loads((tmp_path / "run" / "result.json").read_text())["accuracy_global"]
        == finished().result["accuracy_global"]
    )


# the engine


@pytest.fixture
def engine(tiny, tmp_path):
    opened = []

    def make(*keys: str) -> LocalEngine:
        opened.append(LocalEngine(open_world(tiny(*keys)), tmp_path / "engine"))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def statistics(*clients: str) -> list[Task]:
    settings = {"active": [], "boundary": 3, "features": "backbone"}
    return [Task("statistics", client, "statistics", 0, settings=settings) for client in clients]


def test_closing_ends_a_worker_that_hangs_and_starts_no_other(misbehave, engine, monkeypatch):
    monkeypatch.setattr(process, "_spawn", plain_spawn)  # the others share a process that stays
    before = children()
    misbehave(Rule("hang"))
    there = engine("engine.workers=2")
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            there.run(statistics("client-0", "client-1", "client-2"))  # one waits for a worker
        except FedmsError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not there.processes[0].busy:
        assert asking.is_alive()
    there.close()
    asking.join(60)
    assert not asking.is_alive() and str(errors[0]) == "the workers have been closed"
    assert children() == before


def test_workers_that_cannot_start_end_the_run_in_one_line(misbehave, engine, monkeypatch):
    misbehave(Rule("die"))
    there = engine("engine.workers=2")
    (answer,) = there.run(statistics("client-0"))
    assert answer == Failure("client-0", "died", "its process was ended by SIGKILL")
    monkeypatch.setattr(process, "_spawn", plain_spawn)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(
        FedmsError, match=r"^a worker process ended with code 1 as it started; its last words are above$"
    ):
        there.run(statistics("client-0"))
