"""A run that was stopped at any point goes on to what it would have come to, and what was damaged meanwhile
is recognised.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import Killed, Watched, site
from outcomes import outcome
from PIL import Image
from typer.testing import CliRunner

import fedms
from fedms.cli.main import app
from fedms.config import load_config
from fedms.core import files
from fedms.core.errors import FedmsError, StorageError
from fedms.core.files import is_leftover, locked
from fedms.engines.local import LocalEngine
from fedms.experiments import experiment
from fedms.experiments.observers import Silent
from fedms.federation.exchanges import EXCHANGES
from fedms.federation.exchanges.local_training import TrainingExchange
from fedms.runs.folder import RunFolder

pytestmark = pytest.mark.integration


class Notes(Silent):
    """Keeps what it is told, and gives up after so many rounds."""

    def __init__(self, rounds: int = -1) -> None:
        self.notes: list[str] = []
        self.rounds = rounds

    def note(self, text: str) -> None:
        self.notes.append(text)

    def round_done(self, record: dict[str, Any]) -> None:
        self.rounds -= 1
        if self.rounds == 0:
            raise KeyboardInterrupt


@pytest.fixture
def config(tiny, monkeypatch):
    """A config whose world is opened once, so that a run takes a second."""
    made, opened = tiny(), experiment.open_world
    world = opened(made)
    monkeypatch.setattr(experiment, "open_world", lambda other: world if other == made else opened(other))
    return made


@pytest.fixture
def stopped(config, tmp_path) -> Callable[..., Path]:
    """A run that has been stopped after so many exchanges."""

    def stop(exchanges: int, **more: Any) -> Path:
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, tmp_path / "run", Notes(exchanges), **more)
        return tmp_path / "run"

    return stop


def tree(folder: Path) -> dict[str, bytes | None]:
    """All files that a reader would find."""
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not is_leftover(path.name)
    }


# killed at each write


def test_a_run_that_is_killed_at_any_write_comes_to_the_same(config, finished, tmp_path, monkeypatch):
    """A kill leaves the folder as it is at that moment.

    So one run is watched, its folder is kept at each point where it differs from before, with the temporary
    file of the moment, and each of these folders is gone on with.
    """
    out = tmp_path / "run"
    found: list[dict[str, bytes | None]] = []
    points: list[tuple[str, Path]] = []

    def keep(name: str, path: Path, arguments: tuple[Any, ...]) -> None:
        points.append((name, path))
        if out.exists():
            here = tree(out)
            if found and found[-1] == here:
                shutil.rmtree(tmp_path / f"killed-{len(found)}")
            else:
                found.append(here)
            shutil.copytree(out, tmp_path / f"killed-{len(found)}")

    with monkeypatch.context() as patch:
        patch.setattr(files, "os", Watched(keep))
        experiment.run(config, out)
    wanted = outcome(finished().folder)
    assert outcome(out) == wanted
    assert len(points) > 200 and len(found) > 50
    for number in range(1, len(found) + 1):
        experiment.run(config, tmp_path / f"killed-{number}", resume=True)
        assert outcome(tmp_path / f"killed-{number}") == wanted, f"killed at write {number}"


def test_no_write_stands_on_one_that_the_power_could_take_back(config, tmp_path, monkeypatch):
    """Each file is on the disk before it gets its name, and the name before anything else is written."""
    points: list[tuple[str, Path]] = []
    monkeypatch.setattr(files, "os", Watched(lambda name, path, _: points.append((name, path))))
    experiment.run(config, tmp_path / "run")
    for place, (name, path) in enumerate(points):
        if name == "replace":
            assert points[place - 1] == ("fsync", path) and points[place - 2] == ("write", path)
        if name in ("replace", "mkdir"):
            assert points[place + 1 : place + 3] == [("open", path.parent), ("fsync", path.parent)]
        if name == "write":
            assert points[place + 1] == ("fsync", path)


def test_a_torn_write_and_then_a_kill_leave_nothing_that_counts(config, finished, tmp_path, monkeypatch):
    """Half of what was to be written is there when the process ends, of every kind of file."""
    seen: set[tuple[str, str]] = set()
    for _ in range(100):
        dead: list[str] = []

        def tear(name: str, path: Path, arguments: tuple[Any, ...], dead: list[str] = dead) -> Any:
            if dead:
                raise Killed
            if name == "write" and site(name, path) not in seen:
                seen.add(site(name, path))
                dead.append(name)

                def half() -> int:
                    os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    raise Killed

                return half
            return None

        with monkeypatch.context() as patch:
            patch.setattr(files, "os", Watched(tear))
            try:
                experiment.run(config, tmp_path / "run", resume=True)
            except Killed:
                continue
        break
    assert len(seen) >= 9
    assert outcome(tmp_path / "run") == outcome(finished().folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_kind_of_write_is_one_line_and_loses_nothing(
    config, finished, tmp_path, monkeypatch, code
):
    seen: set[tuple[str, str]] = set()
    told = 0
    for _ in range(200):

        def fail(name: str, path: Path, arguments: tuple[Any, ...]) -> None:
            if site(name, path) not in seen:
                seen.add(site(name, path))
                raise OSError(code, os.strerror(code))

        try:
            with monkeypatch.context() as patch:
                patch.setattr(files, "os", Watched(fail))
                experiment.run(config, tmp_path / "run", resume=True)
            break
        except StorageError as error:
            told += 1
            text = str(error)
            assert (
                os.strerror(code)[1:] in text
                and "cannot be" in text
                and str(tmp_path) in text
                and "\n" not in text
            )
    assert told >= 40
    assert outcome(tmp_path / "run") == outcome(finished().folder)


def test_a_write_that_takes_less_than_it_was_given_goes_on(config, finished, tmp_path, monkeypatch):
    def shorten(name: str, path: Path, arguments: tuple[Any, ...]) -> Any:
        return (
            (lambda: os.write(arguments[0], arguments[1][: len(arguments[1]) // 2 + 1]))
            if name == "write"
            else None
        )

    with monkeypatch.context() as patch:
        patch.setattr(files, "os", Watched(shorten))
        experiment.run(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(finished().folder)


# damaged


def damages(folder: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """Ways to damage what a stopped run has left, one of each kind of file."""
    newest = max((folder / "server").glob("state-*"), key=lambda path: int(path.stem.split("-")[1]))
    state = next((folder / "clients").glob("*/state-1-1.safetensors"))
    received = next((folder / "clients").glob("*/received-1-*.safetensors"))

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)

    def tear(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    made: dict[str, tuple[Path, Callable[[Path], Any]]] = {}
    for name, path in {"checkpoint": newest, "state": state, "received": received}.items():
        for how in (flip, tear, Path.unlink):
            made[f"{name} {how.__name__}"] = path, how
    metrics = folder / "metrics.jsonl"
    made["metrics tear"] = metrics, tear
    made["metrics unlink"] = metrics, Path.unlink
    made["metrics double"] = metrics, lambda path: path.write_text(path.read_text() * 2)
    lines = folder / "server" / "lines.jsonl"
    made["lines tear"] = lines, tear
    made["lines flip"] = lines, flip
    made["lines unlink"] = lines, Path.unlink
    made["environment unlink"] = folder / "environment.json", Path.unlink
    return made


def test_whatever_is_torn_altered_or_missing_the_run_comes_to_the_same(stopped, config, finished, tmp_path):
    run = stopped(5)  # after the first round of the local stage
    wanted = outcome(finished().folder)
    for name in damages(run):
        again = tmp_path / name.replace(" ", "-")
        shutil.copytree(run, again)
        path, damage = damages(again)[name]
        damage(path)
        notes = Notes()
        experiment.run(config, again, notes, resume=True)
        found = outcome(again)
        assert found["result"] == wanted["result"] and found["lines"] == wanted["lines"], name
        told = [note for note in notes.notes if "going on from before it" in note]
        assert bool(told) == (path.suffix == ".safetensors" and name != "checkpoint unlink"), (name, told)


def test_without_its_lines_anywhere_a_checkpoint_does_not_count(stopped, config, finished):
    run = stopped(5)
    for path in (run / "server" / "lines.jsonl", run / "metrics.jsonl"):
        path.write_text(path.read_text().replace("global", "g1obal"))
    notes = Notes()
    experiment.run(config, run, notes, resume=True)
    assert outcome(run) == outcome(finished().folder)
    assert [note.split("damaged: ")[1] for note in notes.notes if "damaged" in note] == [
        f"no longer the lines of checkpoint {number}; going on from before it" for number in (5, 4)
    ]


def test_without_a_whole_checkpoint_all_begins_anew(stopped, config, finished):
    run = stopped(5)
    for path in (run / "server").glob("state-*"):
        path.write_bytes(b"torn")
    notes = Notes()
    experiment.run(config, run, notes, resume=True)
    assert outcome(run) == outcome(finished().folder)
    assert len([note for note in notes.notes if "going on from before it" in note]) == 2


def test_a_result_that_is_torn_is_made_again(config, finished, tmp_path):
    run = tmp_path / "run"
    experiment.run(config, run)
    (run / "result.json").write_text('{"method": ')
    experiment.run(config, run, resume=True)
    assert outcome(run) == outcome(finished().folder)


# what may be gone on with


def test_a_finished_run_is_left_as_it_is(config, tmp_path):
    run, notes = tmp_path / "run", Notes()
    result = experiment.run(config, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert experiment.run(config, run, notes, resume=True) == result
    assert notes.notes == [f"{run}: finished already"]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_folder_that_is_empty_or_missing_is_begun(config, finished, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        experiment.run(config, tmp_path / name, resume=True)
        assert outcome(tmp_path / name) == outcome(finished().folder)


def test_another_config_is_refused_and_names_the_key(stopped, tiny):
    run = stopped(1)
    before = tree(run)
    with pytest.raises(
        FedmsError, match=r"was run with another config: gate.prior 0.5, not 0.3; name another folder"
    ):
        experiment.run(tiny("gate.prior=0.3"), run, resume=True)
    assert tree(run) == before


def test_what_does_not_change_the_result_may_differ(stopped, tiny, finished):
    run = stopped(2)
    experiment.run(tiny("cache.memory_mb=100", "compare.seeds=[5]"), run, resume=True)
    assert outcome(run) == outcome(finished().folder)


def test_without_resume_a_begun_run_is_refused(stopped, config):
    run = stopped(1)
    with pytest.raises(
        FedmsError,
        match="already there and not empty; go on with --resume, or name another folder with --out",
    ):
        experiment.run(config, run)


def test_files_that_are_no_runs_are_refused(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(FedmsError, match="holds files that are no run's"):
            experiment.run(config, place, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_in_one_folder_are_refused_before_anything_is_written(stopped, config, tmp_path, resume):
    run = stopped(1) if resume else tmp_path / "run"
    run.mkdir(exist_ok=True)
    before = tree(run)
    with locked(run), pytest.raises(FedmsError, match="another process is at work in this folder"):
        experiment.run(config, run, resume=resume)
    assert tree(run) == before


# stages that come from another run, other methods, and the end


def test_a_run_with_a_first_stage_from_another_goes_on_without_it(finished, perform, config, tmp_path):
    first = finished("method=fedavg-sal").folder
    whole = perform(reuse=first).folder
    for exchanges in (1, 2, 3):
        out = tmp_path / str(exchanges)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(
                config, out, Notes(exchanges + 3), reuse=first
            )  # the first four lines are the other run's
        experiment.run(config, out, resume=True)
        assert outcome(out) == outcome(whole)


WARM = (
    "activation.rule=warm",
    "activation.blocks=1",
    "activation.warm_rounds=1",
    "federation.rounds_global=3",
)
METHODS = [(f"method={name}",) for name in ("mixture-constant", "fedavg-finetune", "local", "statistics")]


@pytest.mark.parametrize("keys", [*METHODS, WARM], ids="-".join)
def test_other_methods_go_on_too(tiny, finished, tmp_path, keys):
    config = tiny(*keys)
    for _ in range(20):
        try:
            experiment.run(config, tmp_path / "run", Notes(1), resume=True)
        except KeyboardInterrupt:
            continue
        break
    assert outcome(tmp_path / "run") == outcome(finished(*keys).folder)


@pytest.mark.parametrize(
    "kind",
    ["statistics", "calibrate", "head", "label-prior", "train", "evaluate", "interpolate", "weigh", "test"],
)
def test_a_run_that_ends_within_an_exchange_comes_to_the_same(config, finished, tmp_path, monkeypatch, kind):
    """Some clients have answered, and what they keep is newer than the server's checkpoint."""
    exchange, count = type(EXCHANGES[kind]), []
    good = exchange.answer

    def dies(self: Any, view: Any, asked: Any) -> Any:
        count.append(view.client)
        if len(count) in (2, 5):
            raise Killed
        return good(self, view, asked)

    monkeypatch.setattr(exchange, "answer", dies)
    for _ in range(2):
        with pytest.raises(Killed):
            experiment.run(config, tmp_path / "run", resume=True)
    experiment.run(config, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(finished().folder)


def test_the_disk_of_this_machine_is_no_clients_failure(config, tmp_path, monkeypatch):
    """A client that could not write its state would otherwise be left out, and the result be another."""

    def full(name: str, path: Path, arguments: tuple[Any, ...]) -> None:
        if name == "write" and path.parent.name.startswith("client-"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "os", Watched(full))
    with pytest.raises(
        StorageError,
        match=r"client-\d/received-0-\d\.safetensors: cannot be written: no space left on device",
    ):
        experiment.run(config, tmp_path / "run")


# the commands


def test_the_command_goes_on_and_says_when_there_is_nothing_to_do(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    good, asked = LocalEngine.run, []

    def interrupted(self: LocalEngine, tasks: Any, *more: Any) -> Any:
        asked.append(tasks)
        if len(asked) == 4:
            os.kill(os.getpid(), 2)
        return good(self, tasks, *more)

    command = ["run", "tiny.yaml", "--out", "there"]
    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "run", interrupted)
        done = CliRunner().invoke(app, command)
    assert (
        done.exit_code == 130
        and done.stderr == "interrupted; go on with: fedms run tiny.yaml --out there --resume\n"
    )
    assert [line["stage"] for line in RunFolder(Path("there")).metrics()] == ["statistics", "global"], (
        "the round was not ended"
    )
    done = CliRunner().invoke(app, [*command, "--resume"])
    assert done.exit_code == 0 and "going on after global round 1" in done.stdout, done.output
    done = CliRunner().invoke(app, [*command, "--resume"])
    assert done.exit_code == 0 and done.stdout.startswith("there: finished already\n")


def test_a_second_interrupt_ends_at_once(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    good = TrainingExchange.answer

    def interrupted(self: TrainingExchange, view: Any, asked: Any) -> Any:
        for number in (2, 15):
            os.kill(os.getpid(), number)
        return good(self, view, asked)

    monkeypatch.setattr(TrainingExchange, "answer", interrupted)
    done = CliRunner().invoke(app, ["run", "tiny.yaml", "--out", "there", "--quiet"])
    assert done.exit_code == 130 and [line["stage"] for line in RunFolder(Path("there")).metrics()] == [
        "statistics"
    ]


def test_the_python_face_goes_on(stopped, config, finished):
    run = stopped(3)
    fedms.run(config, run, resume=True, report=False)
    assert outcome(run) == outcome(finished().folder)


def test_a_run_on_pictures_goes_on(image_model, tmp_path):
    """What the untrained model is judged by is learned before the first round, and needed after the last."""
    for shade, name in ((40, "dark"), (200, "bright")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(24):
            Image.new("RGB", (32, 32), (shade, shade, 5 * number)).save(
                tmp_path / "pictures" / name / f"{number}.png"
            )
    keys = {
        "model": {"name": str(image_model)},
        "data": {"source": str(tmp_path / "pictures")},
        "engine": {"workers": 1},
    }
    keys |= {
        "partition": {"clients": 3, "alpha": 1.0},
        "federation": {"cohort": 2, "rounds_global": 1, "rounds_local": 1},
    }
    config = load_config(keys)
    experiment.run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "run", Notes(4))
    experiment.run(config, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
