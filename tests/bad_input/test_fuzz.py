"""Whatever a file, a config or a message holds, it is read or refused in one line.

FEDMS_FUZZ=100 searches a hundred times as long.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from holding import comparison_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedms.config import Config, load_config
from fedms.config.data import DataConfig, PartitionConfig
from fedms.config.sections import LoraConfig, ModelConfig
from fedms.core.errors import FedmsError
from fedms.core.files import read_arrays, read_json, write_arrays
from fedms.core.paths import is_name
from fedms.data import sources
from fedms.data.partition import partition
from fedms.federation.messages import Task, Update, decode_task, decode_update, encode
from fedms.model.checkpoints import load_backbone as load_backbone
from fedms.model.peft import from_peft
from fedms.runs.export.peft import write_peft
from fedms.runs.reading.comparison import read_comparison
from fedms.runs.reading.run import read_run
from fedms.runs.report.comparison.figures import pictures as comparison_pictures
from fedms.runs.report.comparison.page import page as comparison_page
from fedms.runs.report.run.figures import pictures
from fedms.runs.report.run.page import page
from fedms.runs.report.tables import result_table

LONGER = int(os.environ.get("FEDMS_FUZZ", "1"))


def fuzz(examples: int) -> Callable[[Any], Any]:
    """So many examples; the same ones each time, unless it is to look longer."""
    checks = [
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ]
    return settings(
        max_examples=examples * LONGER,
        deadline=None,
        derandomize=LONGER == 1,
        suppress_health_check=checks,
        database=None,
    )


def reads(read: Callable[[], Any]) -> Any:
    """What it gives; None where it refuses in one line. Anything else that it raises fails the test."""
    try:
        return read()
    except FedmsError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 2000, message
        return None


# what to read

keys = st.sampled_from(
    [
        *Config.model_fields,
        *(
            key
            for name in Config.model_fields
            for key in getattr(Config.model_fields[name].annotation, "model_fields", {})
        ),
    ]
)
numbers = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -(10**30), 2**63, 10**400])
    | st.floats()
)
values = st.recursive(
    numbers | st.text(max_size=20) | keys,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys | st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def configs(draw: Any) -> dict[Any, Any]:
    """A config some of whose keys, in their sections, hold anything."""
    out: dict[Any, Any] = {}
    for name in draw(st.lists(st.sampled_from(list(Config.model_fields)), max_size=4)):
        section = getattr(Config.model_fields[name].annotation, "model_fields", None)
        inside = st.dictionaries(st.sampled_from(list(section)), values, max_size=3) if section else values
        out[name] = draw(inside | values)
    return out


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """The bytes with a few of them changed, left out, repeated or put in, and perhaps cut short."""
    held = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(held) - 1)))
        how = draw(st.sampled_from(("change", "leave out", "put in", "repeat", "cut", "swap")))
        if how == "change" and held:
            held[at] ^= draw(st.integers(1, 255))
        elif how == "leave out":
            del held[at : at + draw(st.integers(1, 20))]
        elif how == "put in":
            held[at:at] = draw(
                st.binary(min_size=1, max_size=12)
                | st.sampled_from([b'"', b"{", b"[", b",", b"\n", b"\0", b"null", b"1e999", b"\xff"])
            )
        elif how == "repeat":
            held[at:at] = held[at : at + draw(st.integers(1, 50))]
        elif how == "cut":
            del held[at:]
        else:
            to = draw(st.integers(0, max(0, len(held) - 1)))
            held[at:at], held[to:to] = held[to : to + 8], held[at : at + 8]
    return bytes(held)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and its key there."""
    found = []
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        found += [(value, key), *places(inner)]
    return found


others = values.map(lambda value: json.loads(json.dumps(value, default=str))) | st.sampled_from(
    [1e29, -1e29, 10**29, "<b>", "\ud800", "$\\frac"]
)


@st.composite
def replaced(draw: Any, data: bytes) -> bytes:
    """JSON with other values in some places."""
    value = json.loads(data)
    for _ in range(draw(st.integers(1, 3))):
        where = places(value)
        if where:
            holder, key = draw(st.sampled_from(where))
            holder[key] = draw(others)
    return json.dumps(value).encode()


# configs


@fuzz(150)
@given(configs())
def test_any_mapping_is_a_config_or_refused(mapping):
    found = reads(lambda: load_config(mapping))
    assert found is None or reads(lambda: load_config(found.model_dump())) == found


@fuzz(150)
@given(st.data())
def test_any_bytes_are_a_config_or_refused(tmp_path_factory, good, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(data.draw(st.binary(max_size=200) | damaged(good.encode())))
    found = reads(lambda: load_config(path))
    assert found is None or isinstance(found, Config)


@fuzz(200)
@given(
    st.lists(
        st.text(max_size=30)
        | st.builds(
            "{}={}".format,
            st.builds("{}.{}".format, keys, keys) | keys,
            st.text(max_size=20) | values.map(repr),
        ),
        max_size=3,
    )
)
def test_any_override_is_applied_or_refused(overrides):
    reads(lambda: load_config({}, overrides))


# data

TEXTS = [{"text": f'say {n} é, "so"', "label": "ab"[n % 2], "room": n} for n in range(8)]


def written(folder: Path) -> dict[str, bytes]:
    """The same few rows in every format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(TEXTS), folder / "d.parquet")
    lines = [",".join(TEXTS[0]), *(f'"say {n} é, ""so""",{"ab"[n % 2]},{n}' for n in range(8))]
    return {
        ".csv": "\n".join(lines).encode(),
        ".tsv": "\n".join(lines).replace(",", "\t").encode(),
        ".jsonl": "\n".join(map(json.dumps, TEXTS)).encode(),
        ".json": json.dumps(TEXTS).encode(),
        ".parquet": (folder / "d.parquet").read_bytes(),
    }


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
@fuzz(60)
@given(data=st.data())
def test_any_data_are_read_or_refused(tmp_path_factory, suffix, data):
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"fuzzed{suffix}"
    path.write_bytes(data.draw(damaged(written(folder)[suffix])))
    found = reads(lambda: sources.load(DataConfig(source=str(path)), 0))
    if found is not None:
        assert len(found.inputs) == len(found.labels) and all(
            isinstance(text, str) and text.encode() for text in found.inputs
        )
        assert all(name.encode() for name in found.class_names)


@fuzz(100)
@given(st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=6, unique=True))
def test_clients_named_after_any_values_have_names_that_every_file_system_tells_apart(domains):
    import numpy as np

    column = np.array([value for value in domains for _ in range(8)], dtype=str)
    if not (np.unique(column) != "").all():
        return  # NumPy has no strings that end in NUL
    values = len(np.unique(column))
    labels = np.arange(len(column)) % 2
    data = sources.Dataset("text", ["x"] * len(column), labels, ("a", "b"), {"domain": column}, None)
    found = reads(
        lambda: partition(
            data,
            PartitionConfig(rule="column", column="domain", clients=values, alpha=None, min_samples=3),
            0,
        )
    )
    names = [client.name for client in found.clients]
    assert len({name.casefold() for name in names}) == values
    assert all(is_name(name) and name.isascii() and name == name.lower() for name in names)


# what is kept and what travels

ARRAYS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "empty": torch.empty(0)}


@fuzz(200)
@given(st.data())
def test_any_arrays_are_those_that_were_written_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    write_arrays(path, ARRAYS, {"client": "client-0", "prior": 0.5})
    path.write_bytes(data.draw(damaged(path.read_bytes()) | st.binary(max_size=50)))
    found = reads(lambda: read_arrays(path))
    if found is not None and "sha256" in path.read_bytes().decode("latin-1"):
        assert found[1] == {"client": "client-0", "prior": 0.5}
        assert found[0].keys() == ARRAYS.keys() and all(
            torch.equal(found[0][name], ARRAYS[name]) for name in ARRAYS
        )


@fuzz(200)
@given(st.data())
def test_any_json_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(data.draw(damaged(json.dumps(TEXTS).encode()) | st.binary(max_size=50)))
    reads(lambda: read_json(path))


UPDATE = Update("client-0", ARRAYS, 17, {"loss": 0.5, "kept": True})
TASK = Task("train", "client-0", "global", 3, ARRAYS, {"active": [1, 2]})


@pytest.mark.parametrize(
    ("message", "decode"), [(UPDATE, decode_update), (TASK, decode_task)], ids=["update", "task"]
)
@fuzz(150)
@given(data=st.data())
def test_any_bytes_are_a_message_or_refused(message, decode, data):
    found = reads(lambda: decode(data.draw(damaged(encode(message)) | st.binary(max_size=50))))
    assert found is None or isinstance(found, type(message))


@fuzz(60)
@given(st.data())
def test_any_adapter_is_read_or_refused(tmp_path_factory, checkpoint, data):
    global _backbone
    if _backbone is None:
        _backbone = load_backbone(ModelConfig(name=str(checkpoint("bert"))), LoraConfig(rank=2))
    folder = tmp_path_factory.getbasetemp() / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    arrays = {
        "block.0.query.lora_A": torch.ones(2, 32),
        "block.0.query.lora_B": torch.ones(32, 2),
        "head.weight": torch.ones(2, 32),
    }
    write_peft(folder, arrays, _backbone, LoraConfig(rank=2), "bert", ["a", "b"])
    path = folder / data.draw(
        st.sampled_from(["adapter_config.json", "adapter_model.safetensors", "head.safetensors"])
    )
    good = path.read_bytes()
    path.write_bytes(data.draw(damaged(good) | replaced(good) if path.suffix == ".json" else damaged(good)))
    reads(lambda: from_peft(folder, _backbone, LoraConfig(rank=2)))


_backbone: Any = None


# folders of runs and comparisons


def report_on(run: Path) -> None:
    read = read_run(run)
    for picture in (drawn := pictures(read)):
        assert picture.svg
    page(read, drawn).encode()
    result_table([read.result])


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "config.yaml", "environment.json"])
@fuzz(4)
@given(data=st.data())
def test_any_run_is_reported_or_refused(tmp_path_factory, finished, name, data):
    run = tmp_path_factory.getbasetemp() / "fuzzed-run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(finished(), run, ignore=shutil.ignore_patterns("figures", "clients", "server"))
    good = (run / name).read_bytes()
    if name == "metrics.jsonl":
        lines = good.splitlines()
        bad = damaged(good) | st.integers(0, len(lines) - 1).flatmap(
            lambda at: replaced(lines[at]).map(lambda line: b"\n".join([*lines[:at], line, *lines[at + 1 :]]))
        )
    else:
        bad = (
            damaged(good)
            if name == "config.yaml"
            else damaged(good) | replaced(good) | replaced(good) | replaced(good)
        )
    (run / name).write_bytes(data.draw(bad))
    reads(lambda: report_on(run))


@fuzz(8)
@given(data=st.data())
def test_any_comparison_is_reported_or_refused(tmp_path_factory, finished, data):
    folder = tmp_path_factory.getbasetemp() / "fuzzed-comparison"
    folder.mkdir(exist_ok=True)
    good = comparison_of(json.loads((finished() / "result.json").read_text()))
    (folder / "comparison.json").write_bytes(
        data.draw(damaged(good) | replaced(good) | replaced(good) | replaced(good))
    )

    def report() -> None:
        comparison = read_comparison(folder)
        for picture in (drawn := comparison_pictures(comparison)):
            assert picture.svg
        comparison_page(comparison, drawn).encode()

    reads(report)
