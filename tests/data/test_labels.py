"""One class has one spelling: whole numbers as integers or floats, labels with blanks around them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedms.config.data import DataConfig, PartitionConfig
from fedms.core.errors import FedmsError
from fedms.data.columns import same_value
from fedms.data.federated import repeated
from fedms.data.partition import partition
from fedms.data.sources import Dataset, load
from fedms.federation.world import World

CASES = Path(__file__).parents[2].parent / "shared" / "cases"


def lines(path: Path, labels: list[object]) -> Path:
    rows = [{"text": f"hello {row}", "label": label} for row, label in enumerate(labels)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def read(path: Path, **keys: Any) -> Dataset:
    return load(DataConfig(source=str(path), **keys), 0)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["1", "1.0", "2.00"], ["1", "1", "2"]),
        (["-3.0", "-3"], ["-3", "-3"]),
        (["1.0", "2.0"], ["1.0", "2.0"]),  # nothing to tell apart: the names stay
        (["1", "2.5", "1.50"], ["1", "2.5", "1.50"]),
        (["01", "1", "1.0"], ["01", "1", "1"]),
        ([" music", "music\u00a0", "music"], ["music"] * 3),
        (["v1.0", "v1"], ["v1.0", "v1"]),
    ],
)
def test_spellings(given: list[str], found: list[str]) -> None:
    assert same_value(given) == found


def test_integers_and_floats_are_one_class(tmp_path: Path) -> None:
    data = read(lines(tmp_path / "d.jsonl", [1, 2.0, 1.0, 2]))
    assert data.class_names == ("1", "2") and data.labels.tolist() == [0, 1, 0, 1]
    assert any("'2.0' is read as '2'" in note for note in data.notes)


def test_integers_in_train_and_floats_in_test_are_one_class(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    splits: dict[str, list[float]] = {"train": [0, 1, 2, 1], "test": [1.0, 2.0]}
    for split, labels in splits.items():
        table = pa.table({"text": [f"{split} {n}" for n in range(len(labels))], "label": labels})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    data = read(tmp_path)
    assert data.class_names == ("0", "1", "2") and data.labels.tolist() == [0, 1, 2, 1, 1, 2]
    (tmp_path / "test.parquet").unlink()
    (tmp_path / "test.csv").write_text("text,label\nx,3.0\ny,1.0\n")
    with pytest.raises(FedmsError, match="class '3' stands in the test split"):
        read(tmp_path)


def test_blanks_around_a_label_are_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label,home\na,music ,attic\nb,music,attic \nc, off,hall\n")
    data = read(tmp_path / "d.csv")
    assert data.class_names == ("music", "off") and data.labels.tolist() == [0, 0, 1]
    assert data.columns["home"].tolist() == ["attic", "attic", "hall"]
    assert any("2 labels rewritten" in note and "'music '" in note for note in data.notes)
    (tmp_path / "d.csv").write_text("text,label\na,music\nb,off\n")
    assert read(tmp_path / "d.csv").notes == ()


def test_declared_classes_lose_their_blanks_too(tmp_path: Path) -> None:
    import datasets

    names = datasets.ClassLabel(names=["off ", "music", "off"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 2]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    data = read(tmp_path / "d.parquet")
    assert data.class_names == ("off", "music") and data.labels.tolist() == [0, 1, 0]


def test_classes_that_look_the_same_are_told(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\na,Music\nb,music\n")
    data = read(tmp_path / "d.csv")
    assert data.class_names == ("Music", "music")
    assert any("'Music' and 'music' are two classes" in note for note in data.notes)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases, which is not here")
def test_the_cases_of_labels() -> None:
    assert read(CASES / "int_float_labels.jsonl").class_names == ("0", "1")
    data = read(CASES / "trailing_space_labels.csv")
    assert data.class_names == ("lights_off", "lights_on", "music", "volume")
    assert np.bincount(data.labels).tolist() == [30, 30, 30, 30]


# --- the same sample in train and test ----------------------------------------------------------------------


def test_a_test_sample_that_is_trained_on_is_told(tmp_path: Path) -> None:
    rows = [f"hello {n},{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *rows[:7], "new 1,a", "new 2,b"]))
    data = read(tmp_path)
    parts = partition(data, PartitionConfig(clients=2, rule="equal", min_samples=5), 0)
    line = repeated(data.check(), parts)
    assert line and line.startswith("7 of 9 test samples are also training or validation samples (sample 41 ")
    assert "the same as 1)" in line
    (tmp_path / "test.csv").write_text("\n".join(["text,label", "new 1,a", "new 2,b"]))
    data = read(tmp_path)
    parts = partition(data, PartitionConfig(clients=2, rule="equal", min_samples=5), 0)
    assert repeated(data.check(), parts) is None


def test_a_run_tells_what_was_found(opened: Callable[[], World], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fedms.federation.world"):
        opened().check()
    assert [line for line in caplog.messages if "test samples are also training" in line]
