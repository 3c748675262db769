"""`fedms predict` and `fedms export`: a line an input, a line an error."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

import fedms
from fedms.cli.main import app
from tiny_run import finished  # noqa: F401 (a fixture)

runner = CliRunner()


def ask(*arguments, given=None):
    return runner.invoke(app, [str(each) for each in arguments], input=given)


def test_a_line_for_each_text(finished):  # noqa: F811
    done = ask("predict", finished(), "--client", "client-0", "turn on the light", "play music")
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    expected = fedms.load(finished(), "client-0").predict(["turn on the light", "play music"])
    for line, each, text in zip((first, second), expected, ("turn on the light", "play music"), strict=True):
        label, probability, *rest = line.split()
        assert (label, probability) == (each.label, f"{each.probability:.3f}")
        assert " ".join(rest) == f"local {each.local_weight:.3f} global {each.global_weight:.3f} {text}"


def test_texts_come_from_files_and_standard_input(finished, tmp_path):  # noqa: F811
    (tmp_path / "some.txt").write_text("turn on\n\n  \nplay music\r\n")
    from_file = ask("predict", finished(), "--client", "client-1", tmp_path / "some.txt", "--json")
    from_input = ask("predict", finished(), "--client", "client-1", "--json", given="turn on\nplay music\n")
    assert from_file.exit_code == from_input.exit_code == 0
    assert from_file.stdout == from_input.stdout
    lines = [json.loads(line) for line in from_file.stdout.splitlines()]
    assert [line["input"] for line in lines] == ["turn on", "play music"]
    assert all(line["probabilities"][line["label"]] == line["probability"] for line in lines)
    nothing = ask("predict", finished(), "--client", "client-1", given="")
    assert (nothing.exit_code, nothing.stdout) == (0, "")


def test_the_prior_can_be_said(finished):  # noqa: F811
    done = ask("predict", finished(), "--client", "client-0", "--prior", "0", "play music")
    assert "local 0.000  global 1.000" in done.stdout
    done = ask("predict", finished(), "--client", "client-0", "--prior", "2", "play music")
    assert (done.exit_code, done.stderr) == (2, "error: prior: must be from 0 to 1, not 2.0\n")


def test_a_method_that_mixes_nothing_has_no_weights(finished):  # noqa: F811
    done = ask("predict", finished(method="fedavg"), "--client", "client-0", "play music")
    assert done.exit_code == 0 and "local" not in done.stdout
    done = ask("predict", finished(method="fedavg"), "--client", "client-0", "play music", "--json")
    assert json.loads(done.stdout)["local_weight"] is None


def test_pictures_are_files(finished, tmp_path):  # noqa: F811
    Image.new("RGB", (40, 40), "white").save(tmp_path / "white.png")
    done = ask("predict", finished(family="vit"), "--client", "client-0", tmp_path / "white.png")
    assert done.exit_code == 0 and done.stdout.endswith("white.png\n")
    assert (
        ask(
            "predict", finished(family="vit"), "--client", "client-0", given=f"{tmp_path / 'white.png'}\n"
        ).stdout
        == done.stdout
    )
    gone = ask("predict", finished(family="vit"), "--client", "client-0", tmp_path / "gone.png")
    assert gone.exit_code == 1 and "gone.png: cannot read the image" in gone.stderr


@pytest.mark.parametrize(
    ("client", "text", "message"),
    [
        ("client-7", "on", "no client 'client-7'; there are 3: client-0, client-1, client-2"),
        ("../client-0", "on", "no client '../client-0'"),
        ("client-0", "gone.txt", "gone.txt: no such file"),
        ("client-0", "data.csv", "texts are read from .txt files alone"),
        ("client-0", "latin.txt", "latin.txt: not a text in UTF-8 (byte 3)"),
    ],
)
def test_a_line_for_what_cannot_be(finished, tmp_path, monkeypatch, client, text, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").touch()
    (tmp_path / "latin.txt").write_bytes("caffè".encode("latin-1").replace(b"f", b"", 1))
    done = ask("predict", finished(), "--client", client, text)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert message in done.stderr


def test_a_long_text_is_no_file(finished):  # noqa: F811
    done = ask("predict", finished(), "--client", "client-0", "play music " * 500)
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 1


def test_export_names_its_files(finished, tmp_path):  # noqa: F811
    done = ask("export", finished(), "--client", "client-0", "--to", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == sorted(
        str(path) for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    again = ask("export", finished(), "--client", "client-0", "--to", tmp_path / "out")
    assert (
        again.exit_code == 1 and "already there and not empty; name another folder with --to" in again.stderr
    )
    nothing = ask("export", tmp_path, "--client", "client-0", "--to", tmp_path / "other")
    assert nothing.exit_code == 1 and "not a finished run" in nothing.stderr
    assert not (tmp_path / "other").exists()


def test_all_clients_are_exported_each_to_its_folder(finished, tmp_path):  # noqa: F811
    done = ask("export", finished(), "--all", "--to", tmp_path / "all")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["client-0", "client-1", "client-2"]
    assert ask("export", finished(), "--client", "client-1", "--to", tmp_path / "one").exit_code == 0
    for path in (each for each in (tmp_path / "one").rglob("*") if each.is_file()):
        same = tmp_path / "all" / "client-1" / path.relative_to(tmp_path / "one")
        assert same.read_bytes() == path.read_bytes()
    again = ask("export", finished(), "--all", "--to", tmp_path / "all")
    assert again.exit_code == 1 and "already there and not empty" in again.stderr
    for both in ([], ["--all", "--client", "client-0"]):
        done = ask("export", finished(), *both, "--to", tmp_path / "other")
        assert (done.exit_code, done.stderr) == (
            2,
            "error: --client: give either the name of a client or --all\n",
        )


def shell(command, *arguments):
    """A real process with this redirection; `fedms` stands for the command."""
    fedms_command = shlex.join([sys.executable, "-m", "fedms.cli"])
    script = command.replace("fedms", fedms_command, 1)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, "bash", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def test_a_closed_input_is_an_empty_one(finished):  # noqa: F811
    done = shell('fedms predict "$1" --client client-0 <&-', finished())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "2>&1 | true"])
def test_a_closed_output_is_no_failure(finished, tmp_path, redirection):  # noqa: F811
    (tmp_path / "many.txt").write_text("play music\n" * 2000)
    command = f'fedms predict "$1" --client client-0 "$2" {redirection}'
    done = shell(command, finished(), tmp_path / "many.txt")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_first_line_is_as_ever(finished, tmp_path):  # noqa: F811
    (tmp_path / "many.txt").write_text("play music\n" * 2000)
    done = shell('fedms predict "$1" --client client-0 "$2" | head -1', finished(), tmp_path / "many.txt")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert done.stdout.endswith(" play music\n")


def test_a_run_that_is_whole_ends_well_though_nobody_reads(finished, tmp_path):  # noqa: F811
    config, out = finished() / "config.yaml", tmp_path / "run"
    done = shell('fedms run "$1" --out "$2" | true', config, out)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr and "pipe" not in done.stderr
    assert all("test samples are also" in line for line in done.stderr.splitlines()), done.stderr
    assert (out / "report.html").exists()


def test_an_error_is_an_error_though_nobody_reads(finished):  # noqa: F811
    done = shell('fedms predict "$1" --client client-9 on >&-', finished())
    assert done.returncode == 1 and "no client 'client-9'" in done.stderr


def test_half_a_character_is_one_line(finished):  # noqa: F811
    done = ask("predict", finished(), "--client", "client-0", "caff\udce8")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: input 1: holds half a character (a lone surrogate), which is no text\n"


@pytest.mark.parametrize("command", [["predict", "on"], ["export", "--to", "out"]])
def test_a_model_that_has_moved_is_named(finished, checkpoint, tmp_path, monkeypatch, command):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished(), "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config.replace(str(checkpoint("bert")), "models/bert"))
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    (tmp_path / "run" / "environment.json").write_text(json.dumps(environment | {"model_folder": "/gone"}))
    name, *rest = command
    gone = ask(name, "run", "--client", "client-0", *rest)
    line = "error: model /gone: there is no such folder; if it has moved, name its folder with --model"
    assert (gone.exit_code, gone.stderr) == (1, line + " (model= in Python)\n")
    shutil.copytree(checkpoint("bert"), "moved")
    there = ask(name, "run", "--client", "client-0", *rest, "--model", "moved")
    assert there.exit_code == 0, there.output
    expected = ask("predict", finished(), "--client", "client-0", "on").stdout
    assert there.stdout == expected or (tmp_path / "out" / "README.md").exists()
