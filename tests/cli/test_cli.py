"""The commands: exit codes, one line per error, plain output. A stand-in replaces the experiment."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from fedms.cli.inputs import whole_numbers
from fedms.cli.main import app
from fedms.core.errors import ConfigError, FedmsError
from fedms.experiments import description, experiment
from fedms.federation.methods import find
from fedms.runs.report.drawing import SUFFIXES

runner = CliRunner()
PARTITION = {
    "classes": ["lights on", "[red]price in $"],
    "clients": ["client-0", "client-1"],
    "counts": [[10, 0], [1, 5]],
    "splits": [[7, 1, 2], [4, 1, 1]],
}
RESULT = {
    "method": "fedms",
    "seed": 3,
    "clients": 2,
    "rounds": 1,
    "accuracy_local": 0.875,
    "seconds": 1.5,
    "partition": PARTITION,
}
ROUND = {
    "stage": "global",
    "round": 1,
    "rounds": 1,
    "active_blocks": 1,
    "train_loss": None,
    "validation_score": 0.5,
    "seconds": 1.0,
}
Play = Callable[[Callable[..., Any]], None]


def fake_run(
    config: Any, out: Path, observer: Any, reuse: None, resume: bool, written: str | None = None
) -> dict[str, Any]:
    """Write the files of a run without any training."""
    observer.begin(config, {"clients": 2, "model": "minilm", "plan": [{"stage": "global", "rounds": 1}]})
    observer.round_done(ROUND)
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(config.to_yaml())
    (out / "environment.json").write_text("{}")
    (out / "metrics.jsonl").write_text(json.dumps(ROUND) + "\n")
    (out / "result.json").write_text(json.dumps(RESULT))
    return RESULT


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Replace `fedms.experiments.experiment.run` by a function."""

    def put(function: Callable[..., Any]) -> None:
        monkeypatch.setattr(experiment, "run", function)
        monkeypatch.setattr(description, "describe_partition", lambda config: PARTITION)

    return put


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("quick.yaml").write_text("seed: 3\n")
    return "quick.yaml"


def raiser(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


def test_a_run_leaves_a_report_and_says_where(play: Play, config: str) -> None:
    play(fake_run)
    result = runner.invoke(app, ["run", config])
    assert result.exit_code == 0, result.output
    folder = Path("runs/quick-fedms-3")
    assert (folder / "report.html").exists() and (folder / "figures" / "score.png").exists()
    assert str(folder / "report.html") in result.stdout and "0.8750" in result.stdout
    assert "global 1/1  blocks 1  score 0.5000" in result.stdout
    assert "\x1b" not in result.output and result.stderr == ""


def test_overrides_and_out_reach_the_experiment(play: Play, config: str) -> None:
    seen: list[Any] = []

    def watch(
        checked: Any, out: Path, observer: Any, reuse: None, resume: bool, written: str | None = None
    ) -> dict[str, Any]:
        seen.append((checked.seed, checked.gate.prior, out, resume))
        return fake_run(checked, out, observer, reuse, resume)

    play(watch)
    result = runner.invoke(
        app,
        [
            "run",
            config,
            "--set",
            "seed=5",
            "--set",
            "gate.prior=0.3",
            "--out",
            "there",
            "--quiet",
            "--resume",
        ],
    )
    assert result.exit_code == 0, result.output
    assert seen == [(5, 0.3, Path("there"), True)]
    assert "global 1/1" not in result.stdout and "0.8750" in result.stdout


def test_short_options_and_the_demo(play: Play, config: str) -> None:
    seen: list[Any] = []

    def watch(checked: Any, out: Path, *rest: Any, **also: Any) -> dict[str, Any]:
        seen.append((checked.method, checked.seed, checked.partition.column, out))
        return fake_run(checked, out, *rest, **also)

    play(watch)
    for arguments in (["--method", "local", "--seed", "4"], []):
        assert runner.invoke(app, ["run", *arguments]).exit_code == 0
    assert seen == [
        ("local", 4, "domain", Path("runs/assistant-local-4")),
        ("fedms", 0, "domain", Path("runs/assistant-fedms-0")),
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "asistant"], "no example of that name; did you mean 'assistant'?"),
        (["run", "quick.yaml", "--method", "fedavgg"], "did you mean 'fedavg'?"),
        (["run", "quick.yaml", "--set", "gate.prio=0.3"], "did you mean 'prior'?"),
        (["run", "quick.yaml", "--resum"], "--resume"),
        (["compare", "quick.yaml", "--seeds", "3-1"], "as in 0,1,2 or 0-4, not '3-1'"),
    ],
)
def test_a_typing_error_gets_a_suggestion(play: Play, config: str, arguments: list[str], line: str) -> None:
    def found(checked: Any, *_: Any, **__: Any) -> None:
        find(checked.method)

    play(found)
    result = runner.invoke(app, arguments)
    assert result.exit_code and line in result.stderr and result.stderr.count("\n") == 1


def test_seeds_can_be_a_range() -> None:
    assert whole_numbers("0-2,7", "--seeds") == [0, 1, 2, 7] and whole_numbers(None, "--seeds") is None


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FedmsError("data.csv: no column 'label'"), 1, "error: data.csv: no column 'label'"),
        (FedmsError("two\n  lines"), 1, "error: two lines"),
        (
            ConfigError("activation.blocks: 9 is more than the model has (6)"),
            2,
            "error: activation.blocks: 9 is more than the model has (6)",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            1,
            "error: runs/x: no space left on device",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            1,
            "error: no space left on device",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "error: runs: permission denied"),
        (MemoryError(), 1, "error: out of memory"),
        (
            ValueError("\nbad\nworse"),
            1,
            "error: unexpected ValueError: bad; run again with --debug for the traceback",
        ),
        (KeyError(), 1, "error: unexpected KeyError; run again with --debug for the traceback"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; go on with: fedms run quick.yaml --out runs/quick-fedms-3 --resume",
        ),
    ],
)
def test_a_failure_is_one_line_and_a_code(
    play: Play, config: str, error: BaseException, code: int, line: str
) -> None:
    play(raiser(error))
    result = runner.invoke(app, ["run", config])
    assert (result.exit_code, result.stderr, result.stdout) == (code, line + "\n", "")


@pytest.mark.parametrize(("error", "code"), [(ValueError("bad"), 1), (ConfigError("seed: wrong"), 2)])
def test_debug_shows_the_traceback_and_keeps_the_code(
    play: Play, config: str, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMS_DEBUG", "")  # the command sets the variable; monkeypatch removes it again
    play(raiser(error))
    result = runner.invoke(app, ["--debug", "run", config])
    assert result.exit_code == code
    assert "Traceback (most recent call last)" in result.stderr and "in function" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ") and "run again" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "nowhere.yaml"], 1),
        (["run", "quick.yaml", "--set", "gate.prio=0.3"], 2),
        (["run", "quick.yaml", "--set", "gate.prior=2"], 2),
        (["run", "quick.yaml", "--set", "gate"], 2),
        (["partition", "quick.yaml", "--set", "partition.clients=0"], 2),
        (["partition", "quick.yaml", "--out", "who.jpg"], 2),
        (["report", "nowhere"], 1),
        (["report", "."], 1),
    ],
)
def test_a_wrong_input_is_one_line_and_writes_nothing(
    play: Play, config: str, arguments: list[str], code: int
) -> None:
    play(raiser(AssertionError("must not run")))
    result = runner.invoke(app, arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["quick.yaml"]


@pytest.mark.parametrize(
    "arguments", [["compare"], ["run", "quick.yaml", "--no-such"], ["nonsense"], ["report"]]
)
def test_a_wrong_use_is_one_line_that_says_where_help_is(config: str, arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert result.stderr.endswith("--help\n")


def test_no_command_at_all_shows_the_help() -> None:
    result = runner.invoke(app, [])
    assert result.exit_code == 2 and "Usage:" in result.output and "partition" in result.output


def test_the_partition_is_a_table_and_a_picture(play: Play, config: str) -> None:
    play(raiser(AssertionError("must not train")))
    result = runner.invoke(app, ["partition", config, "--out", "pictures/partition.png"])
    assert result.exit_code == 0, result.output
    assert "client-1" in result.stdout and "7/1/2" in result.stdout and "[red]price" in result.stdout
    assert (
        "2 clients, 2 classes, 16 train and validation samples" in result.stdout
        and "\x1b" not in result.output
    )
    assert Path("pictures/partition.png").read_bytes().startswith(b"\x89PNG")


def test_a_partition_can_be_written_as_files(config: str) -> None:
    fewer = ("--set", "partition.clients=2", "--set", "federation.cohort=2")
    result = runner.invoke(app, ["partition", config, *fewer, "--write", "to/written"])
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("sites    to/written/sites\n")
    written = sorted(str(path.relative_to("to")) for path in Path("to").rglob("*.json*"))
    splits = [
        f"written/sites/client-{n}/{split}.jsonl" for n in "01" for split in ("test", "train", "validation")
    ]
    assert written == ["written/classes.json", "written/public.jsonl", *splits]


def test_the_partition_looks_before_training_as_in_the_report_after_it(play: Play, config: str) -> None:
    play(fake_run)
    assert runner.invoke(app, ["run", config, "--out", "done", "--quiet"]).exit_code == 0
    for suffix in SUFFIXES:
        before, after = Path(f"partition{suffix}"), Path(f"done/figures/partition{suffix}")
        assert runner.invoke(app, ["partition", config, "--out", str(before)]).exit_code == 0
        assert before.read_bytes() == after.read_bytes()


def test_a_report_can_be_written_again_and_side_by_side(play: Play, config: str) -> None:
    play(fake_run)
    for folder in ("a", "b"):
        assert runner.invoke(app, ["run", config, "--out", folder, "--quiet"]).exit_code == 0
        (Path(folder) / "report.html").unlink()
    result = runner.invoke(app, ["report", "a", "b"])
    assert result.exit_code == 0, result.output
    assert Path("a/report.html").exists() and Path("b/report.html").exists()
    assert result.stdout.count("0.8750") == 2


def test_in_a_pipe_methods_are_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {
        "fedms": SimpleNamespace(name="fedms", summary="global and local experts", paper="arXiv 2312.15926"),
        "local": SimpleNamespace(name="local", summary="nothing travels", paper=None),
    }
    monkeypatch.setattr("fedms.federation.methods.METHODS", methods)
    result = runner.invoke(app, ["methods"])
    assert result.exit_code == 0, result.output
    assert result.stdout == "fedms\tglobal and local experts\tarXiv 2312.15926\nlocal\tnothing travels\n"


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout.startswith("fedms ")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fedms.cli.main import main\nsys.argv = ['fedms', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "known = {'torch', 'numpy', 'pydantic', 'yaml', 'matplotlib', 'rich', 'transformers'}\n"
        "heavy = known & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "partition" in done.stdout
