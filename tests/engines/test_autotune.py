"""In what way clients train: chosen by what is measured, within what the config allows, and said."""

import math

import pytest

from fedms.core.files import read_json
from fedms.engines import autotune as choice
from fedms.engines import local
from fedms.engines.autotune import Measure, Way, choose, decide, measured
from fedms.experiments.experiment import run
from fedms.experiments.observers import Silent
from fedms.federation import together
from fedms.federation.client import ClientHost
from fedms.federation.methods import METHODS
from fedms.federation.world import open_world
from fedms.runs.folder import RunFolder

FREE = "deterministic=false"


def never(way: Way) -> float:
    raise AssertionError(f"{way} was measured")


@pytest.mark.parametrize(
    ("figures", "wanted", "seen"),
    [
        ({(1, 1): 4.0, (1, 4): 2.0, (1, 16): 1.0, (2, 1): 2.0, (2, 4): 1.5, (2, 16): 1.4}, (1, 16), 6),
        ({(1, 1): 4.0, (1, 4): 5.0, (2, 1): 2.0, (2, 4): 3.0}, (2, 1), 4),
        ({(1, 1): 4.0, (1, 4): 3.0, (1, 16): 3.5, (2, 1): 9.0, (2, 4): math.inf}, (1, 4), 5),
    ],
)
def test_the_way_that_takes_least_is_chosen_and_larger_stacks_only_where_smaller_ones_help(
    figures, wanted, seen
):
    asked = []

    def measure(way: Way) -> float:
        asked.append(way)
        return figures[way.workers, way.stack]

    made = choose([1, 2], [1, 4, 16], measure)
    assert made.way == Way(*wanted) and len(asked) == seen
    assert made.why.startswith(f"clients train {made.way}, the fastest as measured")
    assert all(f"{way} {figures[way.workers, way.stack]:.2f}" in made.why for way in asked)


def test_a_deterministic_run_measures_nothing_and_never_stacks(settings, tmp_path):
    world = open_world(settings("federation.rounds_global=100000"))
    assert decide(world, 2, never, tmp_path) == choice.Choice(Way(2, 1))


def test_what_the_config_fixes_is_not_measured(settings, tmp_path):
    long = (FREE, "federation.rounds_global=100000")

    def decided(measure: Measure, *overrides: str) -> Way:
        return decide(open_world(settings(*long, *overrides)), 2, measure, tmp_path).way

    assert decided(never, "engine.stack=3", "engine.workers=2") == Way(2, 3)
    assert decided(never, "engine.workers=2") == Way(2, 1), "a cohort of three cannot be stacked by four"
    assert decided(never, "engine.workers=2", "method=fedclip") == Way(2, 1), (
        "neither pairs nor a head are trained"
    )
    asked = []
    decided(lambda way: asked.append(way) or 1.0, "engine.stack=3")
    assert asked == [Way(1, 3), Way(2, 3)]


STACKED = {"fedrep": False, "fedalt": False, "fedms": True, "fedavg": True, "fedper": True, "ditto": True}


@pytest.mark.parametrize(("method", "stacks"), STACKED.items())
def test_only_what_the_client_can_stack_is_measured_stacked(settings, tmp_path, monkeypatch, method, stacks):
    monkeypatch.setattr(choice, "STACKS", (1, 3))
    long = (FREE, "federation.rounds_global=100000", "engine.workers=1", f"method={method}")
    asked = []
    decide(open_world(settings(*long)), 1, lambda way: asked.append(way) or 1.0, tmp_path)
    assert asked == ([Way(1, 1), Way(1, 3)] if stacks else [])
    assert list(tmp_path.iterdir()) == []


def test_a_short_run_is_not_worth_measuring(settings, tmp_path):
    made = decide(open_world(settings(FREE)), 2, never, tmp_path)
    assert made.way == Way(2, 1) and "not worth measuring" in made.why


def test_measuring_trains_real_samples_and_leaves_nothing(settings, tmp_path):
    world = open_world(settings())
    figures = [measured(world, together, tmp_path) for together in (1, 3)]
    assert all(0 < figure < math.inf for figure in figures)
    assert list(tmp_path.iterdir()) == []


TRAINING = [
    method
    for method in METHODS.values()
    if any({"A", "B", "head"} & {*stage.trains} for stage in method.stages)
]


@pytest.mark.parametrize("method", [method.name for method in TRAINING])
@pytest.mark.parametrize("head", ["statistics", "text"])
def test_every_method_that_trains_can_be_measured(settings, tmp_path, method, head):
    config = settings(f"method={method}", f"head.kind={head}")
    world = open_world(METHODS[method].configure(config))
    assert 0 < measured(world, 2, tmp_path) < math.inf


def test_a_way_that_fails_is_never_chosen(settings, tmp_path, monkeypatch):
    """Neither where a batch fails as a whole, so that its clients train alone, nor where a client fails."""
    world = open_world(settings())
    with monkeypatch.context() as patch:
        patch.setattr(together, "train_stack", lambda *given: 1 / 0)
        assert measured(world, 3, tmp_path) == math.inf
        assert measured(world, 1, tmp_path) < math.inf
    monkeypatch.setattr(ClientHost, "answered", lambda *given: 1 / 0)
    assert measured(world, 1, tmp_path) == measured(world, 3, tmp_path) == math.inf
    assert list(tmp_path.iterdir()) == []


def test_where_every_way_fails_the_default_stays():
    assert choose([1, 2], [1, 4], lambda way: math.inf).way == Way(2, 1)


# whole runs


@pytest.fixture
def stacks(monkeypatch) -> list[int]:
    sizes: list[int] = []
    good = together.train_stack
    monkeypatch.setattr(
        together,
        "train_stack",
        lambda runner, members, *more: sizes.append(len(members)) or good(runner, members, *more),
    )
    return sizes


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def finished(settings, tmp_path):
    def make(*overrides: str):
        folder, notes = tmp_path / str(len(list(tmp_path.iterdir()))), Notes()
        return (
            run(settings("partition.alpha=0.5", *overrides), folder, notes),
            RunFolder(folder).metrics(),
            notes.lines,
        )

    return make


COSTS = ("stage", "round", "cohort", "failures", "uplink_bytes", "downlink_bytes", "train_flops")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stacked_run_comes_to_the_same_within_the_tolerance(finished, stacks, workers):
    alone, lines, notes = finished("engine.workers=1")
    assert stacks == [] and notes == []
    result, stacked, _ = finished("engine.workers=" + str(workers), FREE, "engine.stack=2")
    assert (2 in stacks) == (workers == 1), "worker processes stack out of sight"
    for key in ("accuracy_local", "accuracy_global"):
        assert result[key] == pytest.approx(alone[key], abs=0.02)
    assert result["train_flops"] == alone["train_flops"]
    for one, other in zip(lines, stacked, strict=True):
        if one["stage"] != "end":
            assert [one[key] for key in COSTS if key != "uplink_bytes"] == [
                other[key] for key in COSTS if key != "uplink_bytes"
            ]
            assert other["train_loss"] == pytest.approx(one["train_loss"], abs=1e-4)


def test_a_run_says_what_was_chosen_and_goes_that_way(finished, stacks, monkeypatch):
    monkeypatch.setattr(choice, "LARGEST_SHARE", math.inf)
    monkeypatch.setattr(choice, "STACKS", (1, 3))
    monkeypatch.setattr(local, "measured", lambda world, stack, folder: 1.0 / stack)
    _, _, notes = finished("engine.workers=1", FREE)
    assert notes[0] == (
        "clients train 3 together in one process, the fastest as measured, in ms a sample: "
        "one at a time in one process 1.00, 3 together in one process 0.33"
    )
    assert set(stacks) == {3}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_environment_names_the_workers_that_train(finished, tmp_path, monkeypatch, workers):
    """Not the default number, nor that of a resumption, which changes nothing in the file."""
    monkeypatch.setattr(local, "worker_count", lambda config, parameters=0: 3 - workers)
    monkeypatch.setattr(local, "decide", lambda *given: choice.Choice(Way(workers, 1)))
    finished()
    assert read_json(tmp_path / "0" / "environment.json")["workers"] == workers
    RunFolder(tmp_path / "0").describe({"workers": 9})
    assert read_json(tmp_path / "0" / "environment.json")["workers"] == workers


def test_workers_are_measured_all_at_once_and_closed_where_they_are_slower(finished, monkeypatch):
    monkeypatch.setattr(choice, "LARGEST_SHARE", math.inf)
    monkeypatch.setattr(local, "worker_count", lambda config, parameters=0: 2)
    monkeypatch.setattr(local, "measured", lambda world, stack, folder: 1e-9)
    _, _, notes = finished(FREE, "engine.stack=1")
    assert "one at a time in 2 processes" in notes[0] and notes[0].startswith(
        "clients train one at a time in one process"
    )
