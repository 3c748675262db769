"""Damaged runs and comparisons, links that lead out, bad inputs of `predict`: one line, nothing changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from holding import Refused, comparison_of, tree
from safetensors.torch import load_file, save_file

import fedms
from fedms.core.errors import FedmsError
from fedms.core.files import read_arrays, write_arrays
from fedms.core.paths import alike, check_no_escape, is_name

CLIENT = "clients/client-0"
MODEL = f"{CLIENT}/model.safetensors"
Damage = Callable[[Path], object]


def write(name: str, content: str | bytes) -> Damage:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda run: (run / name).write_bytes(data)


def remove(name: str) -> Damage:
    return lambda run: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def cut(name: str, share: float) -> Damage:
    def put(run: Path) -> None:
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: int(len(data) * share)])

    return put


def told(name: str, **keys: Any) -> Damage:
    """Set keys of a JSON file; the value `...` removes a key."""

    def put(run: Path) -> None:
        held = {**json.loads((run / name).read_text()), **keys}
        (run / name).write_text(json.dumps({key: value for key, value in held.items() if value is not ...}))

    return put


def parted(**keys: Any) -> Damage:
    """Set keys of the partition in result.json."""

    def put(run: Path) -> None:
        held = json.loads((run / "result.json").read_text())
        held["partition"] |= keys
        (run / "result.json").write_text(json.dumps(held))

    return put


def configured(**keys: Any) -> Damage:
    def put(run: Path) -> None:
        held = yaml.safe_load((run / "config.yaml").read_text())
        for key, value in keys.items():
            section, _, name = key.rpartition("__")
            (held[section] if section else held)[name] = value
        (run / "config.yaml").write_text(yaml.safe_dump(held))

    return put


def folder(name: str) -> Damage:
    def put(run: Path) -> None:
        remove(name)(run)
        (run / name).mkdir()

    return put


def link(name: str, to: str = "../../outside/secret.txt") -> Damage:
    """Replace a file or folder by a link that leads out."""

    def put(run: Path) -> None:
        path = run / name
        if path.exists():
            remove(name)(run)
        path.symlink_to(os.path.relpath(run.parent.parent / "outside" / Path(to).name, path.parent))

    return put


def pipe(name: str) -> Damage:
    def put(run: Path) -> None:
        remove(name)(run)
        os.mkfifo(run / name)

    return put


def facts(**changes: Any) -> Damage:
    """Write a client's model with other values; the file is not damaged."""

    def put(run: Path) -> None:
        arrays, meta = read_arrays(run / MODEL)
        write_arrays(
            run / MODEL,
            arrays,
            {key: value for key, value in {**meta, **changes}.items() if value is not ...},
        )

    return put


def arrays(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Write a client's model with other arrays; the file is not damaged."""

    def put(run: Path) -> None:
        held, meta = read_arrays(run / MODEL)
        change(held)
        write_arrays(run / MODEL, held, meta)

    return put


def emptied(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


def foreign(run: Path) -> None:
    held = load_file(run / MODEL)
    save_file(held, run / MODEL)


def flipped(run: Path) -> None:
    data = bytearray((run / MODEL).read_bytes())
    data[-1] ^= 1
    (run / MODEL).write_bytes(data)


DEEP = "[" * 500 + "]" * 500
RESULT: dict[str, tuple[Damage, str]] = {
    "empty": (
        emptied,
        "run: not a finished run: it has no result.json",
    ),
    "an empty result": (write("result.json", ""), "result.json: damaged: not valid JSON"),
    "a torn result": (cut("result.json", 0.6), "result.json: damaged: not valid JSON"),
    "a result in another encoding": (
        write("result.json", b"\xff\xfe{}"),
        "result.json: damaged: not valid JSON",
    ),
    "a result of zeros": (write("result.json", b"\0" * 500), "result.json: damaged: not valid JSON"),
    "a result that is a list": (write("result.json", "[]"), "result.json: damaged: not a mapping"),
    "a result that is null": (write("result.json", "null"), "result.json: damaged: not a mapping"),
    "a result too deep": (
        write("result.json", '{"a": ' + DEEP + "}"),
        "result.json: damaged: nested too deeply",
    ),
    "a result far too deep": (write("result.json", "[" * 100_000), "result.json: damaged: not valid JSON"),
    "a result with half a character": (
        write("result.json", '{"method": "\\ud800"}'),
        "result.json: damaged: nested too deeply, or not text",
    ),
    "a number of many digits": (
        write("result.json", '{"seconds": ' + "9" * 5000 + "}"),
        "result.json: damaged: not valid JSON",
    ),
    "a folder for a result": (folder("result.json"), "result.json: cannot be read"),
    "clients that are no list": (told("result.json", per_client=3), "result.json: damaged: per_client"),
    "clients that are words": (told("result.json", per_client=["a"]), "result.json: damaged: per_client"),
    "a frontier that is no list": (told("result.json", frontier={"a": 1}), "result.json: damaged: frontier"),
    "a partition that is no mapping": (told("result.json", partition=[1]), "result.json: damaged: partition"),
    "a partition of nothing": (told("result.json", partition={}), "result.json: damaged: partition"),
    "counts of other classes": (parted(classes=["a"]), "result.json: damaged: partition"),
    "counts of other clients": (parted(clients=["client-0"]), "result.json: damaged: partition"),
    "counts that are words": (parted(counts=[["a"] * 4] * 3), "result.json: damaged: partition"),
    "negative counts": (parted(counts=[[-1] * 4] * 3), "result.json: damaged: partition"),
    "counts beyond all data": (parted(counts=[[2**64] * 4] * 3), "result.json: damaged: partition"),
    "ragged counts": (parted(counts=[[1] * 4, [1], [1]]), "result.json: damaged: partition"),
    "classes that are numbers": (parted(classes=[1, 2, 3, 4]), "result.json: damaged: partition"),
    "no config": (remove("config.yaml"), "run: not a finished run: it has no config.yaml"),
    "a torn config": (write("config.yaml", "seed: ["), "config.yaml: damaged: not valid YAML"),
    "a config that is a list": (write("config.yaml", "- 1\n"), "config.yaml: damaged: not a mapping"),
    "a config that runs something": (
        write("config.yaml", "seed: !!python/object/apply:os.mkdir [executed]\n"),
        "config.yaml: damaged",
    ),
    "no lines": (remove("metrics.jsonl"), "run: not a finished run: it has no metrics.jsonl"),
    "a torn line": (cut("metrics.jsonl", 0.9), "metrics.jsonl: damaged: not valid JSON"),
    "a line of garbage": (write("metrics.jsonl", "garbage\n"), "metrics.jsonl: damaged: not valid JSON"),
    "a line that is a list": (
        write("metrics.jsonl", "[]\n"),
        "metrics.jsonl: damaged: a line is not a round's record",
    ),
    "failures that are no list": (
        write("metrics.jsonl", '{"failures": 3}\n'),
        "metrics.jsonl: damaged: a line is not",
    ),
    "a cohort that is no list": (
        write("metrics.jsonl", '{"cohort": "all"}\n'),
        "metrics.jsonl: damaged: a line is not",
    ),
    "no environment": (remove("environment.json"), "run: not a finished run: it has no environment.json"),
    "an environment that is a list": (
        write("environment.json", "[]"),
        "environment.json: damaged: not a mapping",
    ),
    # links that lead out
    "a result elsewhere": (link("result.json"), "result.json: a link that leads out"),
    "lines elsewhere": (link("metrics.jsonl"), "metrics.jsonl: a link that leads out"),
    "a config elsewhere": (link("config.yaml"), "config.yaml: a link that leads out"),
    "a report elsewhere": (link("report.html"), "report.html: a link that leads out"),
    "a draft elsewhere": (link("report.html.tmp"), "report.html.tmp: a link that leads out"),
    "figures elsewhere": (link("figures", "../outside"), "figures: a link that leads out"),
    "clients elsewhere": (link("clients", "../outside"), "clients: a link that leads out"),
    "a client elsewhere": (link(CLIENT, "../outside"), "client-0: a link that leads out"),
    "a model elsewhere": (link(MODEL), "model.safetensors: a link that leads out"),
    "a checkpoint elsewhere": (
        link("server/state-9.safetensors"),
        "state-9.safetensors: a link that leads out",
    ),
    "a link to nothing": (link("server/more", "nothing"), "more: a link that leads out"),
    "a pipe": (pipe("result.json"), "result.json: neither a file nor a folder"),
}
MODELS: dict[str, tuple[Damage, str]] = {
    "no model": (remove(MODEL), "model.safetensors: there is no such file"),
    "no folder": (remove(CLIENT), "model.safetensors: there is no such file"),
    "a torn model": (cut(MODEL, 0.7), "model.safetensors: damaged"),
    "an empty model": (write(MODEL, b""), "model.safetensors: damaged"),
    "a model of zeros": (write(MODEL, b"\0" * 5000), "model.safetensors: damaged"),
    "an altered model": (flipped, "model.safetensors: damaged: what it holds is not what was written"),
    "a model without facts": (foreign, "model.safetensors: damaged"),
    "a folder for a model": (folder(MODEL), "model.safetensors: damaged"),
    "a pickle in its place": (
        lambda run: (run / MODEL).rename(run / CLIENT / "model.pt"),
        "model.safetensors: there is no such file",
    ),
    "another client's": (
        lambda run: shutil.copy(run / "clients/client-1/model.safetensors", run / MODEL),
        "it is the model of client-1",
    ),
    "no boundary": (facts(boundary=...), "model.safetensors: damaged: not a client's model"),
    "a boundary that is a word": (facts(boundary="low"), "model.safetensors: damaged: not a client's model"),
    "a boundary beyond the blocks": (facts(boundary=99), "model.safetensors: damaged: it does not fit"),
    "a prior beyond 1": (facts(prior=3), "model.safetensors: damaged: it does not fit"),
    "no arrays": (arrays(dict.clear), "model.safetensors: damaged: it does not fit"),
    "no head": (
        arrays(lambda held: held.pop("global/head.weight")),
        "model.safetensors: damaged: it does not fit",
    ),
    "no counts": (arrays(lambda held: held.pop("own.counts")), "model.safetensors: damaged: it does not fit"),
    "a head of other classes": (
        arrays(
            lambda held: held.update(
                {
                    f"global/head.{name}": held[f"global/head.{name}"][:2].clone()
                    for name in ("weight", "bias")
                }
            )
        ),
        "model.safetensors: damaged: it does not fit",
    ),
    "another config": (configured(method="feddpa"), "model.safetensors: damaged: it does not fit"),
    "an unknown method": (
        configured(method="nothing"),
        "config.yaml: damaged: method: 'nothing' is not known",
    ),
    "a wrong key": (configured(gate__prior=7), "config.yaml: damaged: gate.prior"),
    "another layer": (configured(lora__targets=["nowhere"]), "config.yaml: damaged: lora.targets"),
    "a model that is gone": (
        configured(model__name="/nowhere/bert"),
        "model /nowhere/bert: there is no such folder",
    ),
    "no partition": (
        told("result.json", partition=None),
        "result.json: damaged: it does not say which classes",
    ),
}


@pytest.fixture
def run(place: Path, finished) -> Path:
    """A finished run, to be damaged."""
    return Path(shutil.copytree(finished(), place / "run"))


def test_a_run_without_a_result(run: Path, refused: Refused):
    """Its report says so; nothing can be predicted."""
    (run / "result.json").unlink()
    refused(["predict", "run", "--client", "client-0", "play music"], 1, "run: not a finished run: it has no")


@pytest.mark.parametrize(("damage", "says"), RESULT.values(), ids=RESULT)
def test_a_damaged_run(run: Path, refused: Refused, damage, says):
    damage(run)
    refused(["report", "run"], 1, says)
    refused(["predict", "run", "--client", "client-0", "play music"], 1)
    assert not (run.parent / "executed").exists()


@pytest.mark.parametrize(("damage", "says"), MODELS.values(), ids=MODELS)
def test_a_damaged_model(run: Path, refused: Refused, damage, says):
    damage(run)
    refused(["predict", "run", "--client", "client-0", "play music"], 1, says)
    refused(["export", "run", "--client", "client-0", "--to", "new/there"], 1, says)


INPUTS: dict[str, tuple[list[str], int, str, bytes | None]] = {
    "an unknown client": (["--client", "client-9", "x"], 1, "no client 'client-9'; there are 3", None),
    "a client that leads up": (["--client", "../client-0", "x"], 1, "no client '../client-0'", None),
    "no name": (["--client", "", "x"], 1, "no client ''", None),
    "a client in another case": (["--client", "Client-0", "x"], 1, "no client 'Client-0'", None),
    "a client with an escape code": (["--client", "\x1b[31m", "x"], 1, "no client", None),
    "no such file": (["--client", "client-0", "gone.txt"], 1, "gone.txt: no such file", None),
    "a folder": (["--client", "client-0", "folder.txt"], 1, "folder.txt: no such file", None),
    "a file of another kind": (
        ["--client", "client-0", "d.csv"],
        1,
        "texts are read from .txt files alone",
        None,
    ),
    "a file in Latin-1": (
        ["--client", "client-0", "latin.txt"],
        1,
        "latin.txt: not a text in UTF-8 (byte 3)",
        None,
    ),
    "input in UTF-16": (
        ["--client", "client-0"],
        1,
        "standard input: not a text in UTF-8",
        "play".encode("utf-16"),
    ),
    "a prior beyond 1": (
        ["--client", "client-0", "--prior", "2", "x"],
        2,
        "prior: must be from 0 to 1",
        None,
    ),
    "a prior that is no number": (
        ["--client", "client-0", "--prior", "nan", "x"],
        2,
        "prior: must be from 0 to 1",
        None,
    ),
}


@pytest.mark.parametrize(("arguments", "code", "says", "given"), INPUTS.values(), ids=INPUTS)
def test_a_bad_input(run: Path, refused: Refused, arguments, code, says, given):
    (run.parent / "d.csv").touch()
    (run.parent / "folder.txt").mkdir()
    (run.parent / "latin.txt").write_bytes(b"caf\xe9")
    refused(["predict", "run", *arguments], code, says, given=given)


@pytest.mark.parametrize(
    "name", ["../clients/client-1", "..", "client-1/.", ".hidden", "a\\b", "/etc", "a\0b", "x" * 300]
)
def test_a_client_whose_name_leads_elsewhere(run: Path, refused: Refused, name):
    parted(clients=["client-0", "client-1", name])(run)
    refused(["predict", "run", "--client", name, "x"], 1, "cannot be a client's name: no `/`")
    refused(["export", "run", "--client", name, "--to", "there"], 1, "cannot be a client's name")


PLACES = {
    "a file": ("good.yaml", "already there and not empty"),
    "below a file": ("good.yaml/x", "cannot be made"),
    "used": ("run", "already there and not empty"),
    "a link": ("link", "already there and not empty"),
    "too long a name": ("new/deep/" + "x" * 300, "name too long"),
    "nowhere": ("/proc/x", "/proc/x: cannot be made"),
}


@pytest.mark.parametrize(("to", "says"), PLACES.values(), ids=PLACES)
def test_an_export_where_none_can_be(run: Path, refused: Refused, to, says):
    (run.parent / "link").symlink_to("../outside")
    line = refused(["export", "run", "--client", "client-0", "--to", to], 1)
    assert says in line.lower()


RESUMED: dict[str, tuple[Damage, str]] = {
    "another config": (configured(seed=5), "was run with another config: seed 5, not 0"),
    "a damaged config": (
        write("config.yaml", "seed: ["),
        "was run with another config: one that cannot be read",
    ),
    "a config of laughs": (
        write("config.yaml", "a: &a [x]\nb: " + "[" * 30 + ", ".join(["*a"] * 9) + "]" * 30),
        "one that cannot be read",
    ),
    "no config": (remove("config.yaml"), "holds files that are no run's"),
    "a client elsewhere": (link(CLIENT, "../outside"), "client-0: a link that leads out"),
    "a checkpoint elsewhere": (
        link("server/state-3.safetensors"),
        "state-3.safetensors: a link that leads out",
    ),
    "a server elsewhere": (link("server", "../outside"), "server: a link that leads out"),
    "lines elsewhere": (link("metrics.jsonl"), "metrics.jsonl: a link that leads out"),
    "a result elsewhere": (link("result.json"), "result.json: a link that leads out"),
    "a cache elsewhere": (link("cache", "../outside"), "cache: a link that leads out"),
    "a pipe": (pipe("metrics.jsonl"), "metrics.jsonl: neither a file nor a folder"),
}


@pytest.mark.parametrize(("damage", "says"), RESUMED.values(), ids=RESUMED)
def test_a_run_that_cannot_be_gone_on_with(run: Path, refused: Refused, damage, says):
    shutil.copy(run / "config.yaml", run.parent / "again.yaml")
    (run / "result.json").unlink()
    damage(run)
    refused(["run", "again.yaml", "--out", "run", "--resume"], 1, says)


# comparisons


def compared(**changes: Any) -> Damage:
    """Set keys of comparison.json."""
    return told("comparison.json", **changes)


def of_first(part: str, **changes: Any) -> Damage:
    """Set keys of the first of its methods or runs."""

    def put(folder: Path) -> None:
        held = json.loads((folder / "comparison.json").read_text())
        held[part][0] = {
            key: value for key, value in {**held[part][0], **changes}.items() if value is not ...
        }
        (folder / "comparison.json").write_text(json.dumps(held))

    return put


FILE = "comparison.json: damaged: "
COMPARISONS: dict[str, tuple[Damage, str]] = {
    "unfinished": (remove("comparison.json"), "no run of this comparison is finished yet"),
    "torn": (cut("comparison.json", 0.7), FILE + "not valid JSON"),
    "a list": (write("comparison.json", "[]"), FILE + "not a mapping"),
    "too deep": (write("comparison.json", '{"a": ' + DEEP + "}"), FILE + "nested too deeply"),
    "no rows": (compared(methods=[]), FILE + "methods"),
    "rows that are words": (compared(methods=["fedms"]), FILE + "methods"),
    "a row without means": (of_first("methods", mean=...), FILE + "methods"),
    "no runs": (compared(runs=...), FILE + "runs"),
    "a run without a result": (of_first("runs", result=None), FILE + "runs"),
    "a run with a damaged result": (of_first("runs", result={"partition": {"counts": 3}}), FILE + "runs"),
    "a run that leads up": (of_first("runs", folder="../outside"), FILE + "runs"),
    "a run at a root": (of_first("runs", folder="/etc"), FILE + "runs"),
    "seeds that are no list": (compared(seeds=0), FILE + "seeds"),
    "a result elsewhere": (link("comparison.json"), "comparison.json: a link that leads out"),
    "runs elsewhere": (link("runs", "../outside"), "runs: a link that leads out"),
    "a pipe": (pipe("comparison.json"), "comparison.json: neither a file nor a folder"),
}
GONE_ON_WITH: dict[str, tuple[Damage, str]] = {
    "another config": (
        write("comparison.yaml", "seed: 0\nlora: {rank: 3}\n"),
        "holds a comparison with another config: ",
    ),
    "a damaged config": (write("comparison.yaml", "seed: ["), "with another config: one that cannot be read"),
    "no config": (remove("comparison.yaml"), "already there and not empty"),
    "a config elsewhere": (link("comparison.yaml"), "comparison.yaml: a link that leads out"),
    "runs elsewhere": (link("runs", "../outside"), "runs: a link that leads out"),
}


@pytest.fixture
def comparison(place: Path, finished) -> Path:
    """A finished comparison's folder, to be damaged."""
    folder = place / "compared"
    (folder / "runs").mkdir(parents=True)
    (folder / "comparison.json").write_bytes(
        comparison_of(json.loads((finished() / "result.json").read_text()))
    )
    (folder / "comparison.yaml").write_text((place / "good.yaml").read_text())
    return folder


@pytest.mark.parametrize(("damage", "says"), COMPARISONS.values(), ids=COMPARISONS)
def test_a_damaged_comparison(comparison: Path, refused: Refused, damage, says):
    damage(comparison)
    refused(["report", "compared"], 1, says)


@pytest.mark.parametrize(("damage", "says"), GONE_ON_WITH.values(), ids=GONE_ON_WITH)
def test_a_comparison_that_cannot_be_gone_on_with(comparison: Path, refused: Refused, damage, says):
    damage(comparison)
    refused(["compare", "good.yaml", "--methods", "local", "--seeds", "0", "--out", "compared"], 1, says)


# names and links


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "a\\b",
        ".hidden",
        "a\0",
        "a\nb",
        "a\x1b",
        " a",
        "a ",
        "a..b",
        "x" * 201,
        "\ud800",
        3,
        None,
    ],
)
def test_a_name_that_could_lead_elsewhere_is_none(name):
    assert not is_name(name)


@pytest.mark.parametrize("name", ["client-0", "Küche-3", "a b", "prior 0.9", "日本"])
def test_what_people_call_things_is_a_name(name):
    assert is_name(name)


def test_names_that_some_file_systems_confuse_are_found():
    assert alike(["a", "b", "c"]) is None
    assert alike(["a", "b", "A"]) == ("a", "A")
    assert alike(["\u00e9", "e\u0301"]) == ("\u00e9", "e\u0301")


def test_links_that_stay_inside_are_let_be(run: Path):
    (run / "latest").symlink_to("report.html")
    (run / "people").symlink_to("clients")
    check_no_escape(run)
    (run.parent / "short").symlink_to("run")
    check_no_escape(run.parent / "short")


def test_a_run_that_is_reused_leads_nowhere_else(run: Path, place):
    link(MODEL)(run)
    before = tree(place.parent)
    with pytest.raises(FedmsError, match="a link that leads out"):
        fedms.run(place / "good.yaml", place / "new", reuse=run)
    assert tree(place.parent) == before


def test_what_a_report_shows_of_names_is_text(run: Path):
    bad = "<script>alert(1)</script>"
    parted(classes=[bad, '"><img src=x onerror=alert(1)>', "&amp;", "]]>"])(run)
    held = json.loads((run / "result.json").read_text())
    held["method"] = held["per_client"][0]["name"] = bad
    (run / "result.json").write_text(json.dumps(held))
    configured(model__name=bad, data__source=bad)(run)
    told("environment.json", **{bad: bad})(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"stage": bad, "round": 1, "failures": [{"client": bad, "reason": bad}]}) + "\n"
        )
    from fedms.runs.report.run.page import write_report

    page = write_report(run).read_text()
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;" in page
