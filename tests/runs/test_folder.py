"""Files are complete or missing, and a run folder keeps its content."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedms.config import Config, load_config
from fedms.core.errors import FedmsError
from fedms.core.files import read_arrays, read_json, write_arrays, write_bytes, write_json
from fedms.federation import client_folder
from fedms.federation.client_folder import ClientFolder, Recent
from fedms.runs.folder import RunFolder


class PowerCut(BaseException):
    """A BaseException, as KeyboardInterrupt is."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def arrays(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3,), value)}


def test_a_write_that_is_interrupted_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_bytes(path, b"old")

    def cut(_: int) -> None:
        raise PowerCut

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(PowerCut):
        write_bytes(path, b"new, and longer")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state"]


def test_a_write_that_succeeds_replaces_the_file_and_leaves_no_other(tmp_path):
    for data in (b"old", b"new"):
        write_bytes(tmp_path / "deep" / "state", data)
    assert (tmp_path / "deep" / "state").read_bytes() == b"new"
    assert names(tmp_path / "deep") == ["state"]


def test_arrays_and_values_come_back(tmp_path):
    held = {"a": torch.randn(2, 3), "empty": torch.empty(0), "view": torch.arange(6).reshape(2, 3).T}
    write_arrays(tmp_path / "x", held, {"active": [1], "prior": 0.1})
    again, meta = read_arrays(tmp_path / "x")
    assert meta == {"active": [1], "prior": 0.1}
    assert again.keys() == held.keys() and all(torch.equal(again[name], held[name]) for name in held)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_file_is_damaged_in_one_line(tmp_path, keep):
    path = tmp_path / "state.safetensors"
    write_arrays(path, arrays(1), {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FedmsError, match=r"state\.safetensors: damaged") as caught:
        read_arrays(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["an array", "a value"])
def test_an_altered_file_is_damaged(tmp_path, part):
    path = tmp_path / "state.safetensors"
    write_arrays(path, arrays(1), {"prior": 0.25})
    data = path.read_bytes()
    path.write_bytes(
        data[:-1] + bytes([data[-1] ^ 1]) if part == "an array" else data.replace(b"0.25", b"0.35")
    )
    with pytest.raises(FedmsError, match="damaged: what it holds is not what was written"):
        read_arrays(path)


def test_a_file_that_is_not_there_or_not_ours_is_one_line(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FedmsError, match="there is no such file"):
        read_arrays(tmp_path / "nowhere")
    save_file(arrays(1), tmp_path / "foreign")
    with pytest.raises(FedmsError, match="damaged"):
        read_arrays(tmp_path / "foreign")


def test_json_has_no_nan_and_damage_is_one_line(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    with pytest.raises(ValueError):
        write_json(path, float("nan"))
    path.write_text("{")
    with pytest.raises(FedmsError, match="not valid JSON"):
        read_json(path)
    with pytest.raises(FedmsError, match="cannot be read"):
        read_json(tmp_path)


# the folder of a client


@pytest.fixture
def client(tmp_path) -> ClientFolder:
    return ClientFolder(tmp_path / "client-0")


def value(client: ClientFolder, before: tuple[int, int], kind: str = "state") -> float | None:
    found = client.load(kind, before)[0]
    return float(found["a"][0]) if found else None


def test_a_client_reads_what_stood_before_the_round(client):
    for at, number in {(0, 9): 1.0, (0, 10): 2.0}.items():
        client.save("state", at, arrays(number), {})
    assert [value(client, at) for at in ((0, 9), (0, 10), (0, 11), (1, 0))] == [None, 1.0, 2.0, 2.0]


def test_a_round_done_again_reads_the_same_and_writes_over(client):
    client.save("state", (0, 1), arrays(1), {})
    client.save("state", (0, 2), arrays(2), {})
    assert value(client, (0, 2)) == 1
    client.save("state", (0, 2), arrays(3), {})
    assert (value(client, (0, 2)), value(client, (0, 3))) == (1, 3)


def test_a_client_keeps_the_newest_version_and_the_two_before(client):
    for at in ((0, 1), (0, 2), (0, 10), (1, 1)):
        client.save("state", at, arrays(1), {})
    assert names(client.path) == ["state-0-10.safetensors", "state-0-2.safetensors", "state-1-1.safetensors"]


def test_kinds_are_apart_and_foreign_files_are_left_alone(client):
    client.save("state", (0, 1), arrays(1), {})
    client.save("received", (0, 1), arrays(2), {})
    (client.path / "state-final.safetensors").write_bytes(b"")
    client.save("state", (0, 2), arrays(3), {})
    client.save("state", (0, 3), arrays(3), {})
    assert value(client, (9, 9), "received") == 2
    assert (client.path / "state-final.safetensors").exists()


class Reads:
    """Records the files that are read from disk."""

    def __init__(self, monkeypatch) -> None:
        self.paths: list[str] = []
        good = client_folder.read_arrays

        def read(path: Path) -> Any:
            self.paths.append(path.name)
            return good(path)

        monkeypatch.setattr(client_folder, "read_arrays", read)


def test_what_was_just_written_or_read_is_not_read_again(tmp_path, monkeypatch):
    reads, recent = Reads(monkeypatch), Recent(10_000)
    one, other = (ClientFolder(tmp_path / name, recent) for name in ("one", "other"))
    one.save("state", (0, 1), arrays(1), {})
    one.load("state", (0, 2))[0].clear()
    assert value(one, (0, 2)) == 1 and reads.paths == []
    one.save("state", (0, 1), arrays(2), {})  # the round again
    assert (value(one, (0, 2)), value(other, (0, 2))) == (2, None)
    again = ClientFolder(one.path, Recent(10_000))
    assert (value(again, (0, 2)), value(again, (0, 2))) == (2, 2) and len(reads.paths) == 1


def test_what_was_not_used_for_longest_is_read_again(client, tmp_path, monkeypatch):
    reads, recent = Reads(monkeypatch), Recent(2 * (1024 + 24))
    held = ClientFolder(client.path, recent)
    for kind in ("a", "b"):
        held.save(kind, (0, 1), arrays(1), {})
    value(held, (0, 2), "a")
    held.save("c", (0, 1), arrays(1), {})
    assert [value(held, (0, 2), kind) for kind in "acb"] == [1, 1, 1] and reads.paths == ["b-0-1.safetensors"]
    held.save("d", (0, 1), {"a": torch.ones(10_000)}, {})
    value(held, (0, 2), "d")
    assert len(reads.paths) == 1, "the newest stays, however large"


# the run folder


def started(path: Path, config: Config | None = None) -> RunFolder:
    """A run folder as an experiment starts it."""
    config, folder = config or load_config({}), RunFolder(path)
    folder.admit(config, resume=False)
    with folder.claimed(config, resume=False):
        folder.describe({"seed": config.seed})
    return folder


def test_a_run_folder_is_not_made_over_anything(tmp_path):
    used, file = tmp_path / "used", tmp_path / "file"
    used.mkdir()
    (used / "thesis.txt").write_text("mine")
    file.write_text("mine")
    for path in (used, file):
        with pytest.raises(FedmsError, match="already there and not empty; name another folder with --out"):
            started(path)
    assert names(used) == ["thesis.txt"] and file.read_text() == "mine"
    with pytest.raises(FedmsError, match="cannot be made"):
        started(file / "below")


def test_a_run_folder_keeps_config_and_lines(tmp_path):
    config = load_config({"seed": 7, "gate": {"prior": 0.3}})
    folder = started(tmp_path / "a" / "run", config)
    assert names(folder.path) == ["config.yaml", "environment.json"]
    assert folder.config() == config
    for number in range(2):
        folder.append_metrics({"round": number})
    assert folder.metrics() == [{"round": 0}, {"round": 1}]
    (folder.path / "metrics.jsonl").write_text('{"round": 0}\n{"rou')
    with pytest.raises(FedmsError, match=r"metrics\.jsonl: damaged"):
        folder.metrics()


def test_an_empty_folder_will_do(tmp_path):
    assert names(started(tmp_path).path) == ["config.yaml", "environment.json"]


def test_a_run_resumes_with_the_same_plugins_only(tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "my_methods", ModuleType("my_methods"))
    config = load_config({"plugins": ["my_methods"]})
    folder = started(tmp_path / "run", config)
    folder.admit(config, resume=True)
    with pytest.raises(FedmsError, match=r"another config: plugins \('my_methods',\), not \(\)"):
        folder.admit(load_config({}), resume=True)


def test_a_damaged_result_counts_as_none(tmp_path):
    """A resumed run then writes it again, with the checks that a report makes."""
    folder = started(tmp_path / "run")
    assert folder.result() is None
    folder.write_result({"seed": 0, "per_client": [{"name": "client-0"}]})
    assert folder.result() == {"seed": 0, "per_client": [{"name": "client-0"}]}
    for damaged in ('{"seed": 0', "[]", '{"per_client": ["client-0"]}'):
        (folder.path / "result.json").write_text(damaged)
        assert folder.result() is None


def test_reading_loses_no_memory(tmp_path):
    """`safe_open` of safetensors leaks two objects with each array; `read_arrays` must not."""
    path = tmp_path / "some.safetensors"
    write_arrays(path, {f"array.{number}": torch.zeros(300, 300) for number in range(20)}, {})
    read_arrays(path)
    before = sys.getallocatedblocks()
    for _ in range(100):
        read_arrays(path)
    assert sys.getallocatedblocks() - before < 500
