"""A client's view holds its own rows under their own numbers, and no text of anybody else."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedms.config.data import DataConfig, PartitionConfig
from fedms.core.errors import FedmsError
from fedms.data.federated import SPLITS, FederatedDataset, OpenRows, Rows, federated
from fedms.data.partition import ClientSplit, partition
from fedms.data.sources import Dataset, load


def corpus(size: int = 120) -> Dataset:
    labels = np.arange(size) % 3
    texts = [f"secret number {row} of {label}" for row, label in enumerate(labels)]
    return Dataset("text", texts, labels, ("a", "b", "c"), {}, None)


@pytest.fixture
def whole() -> FederatedDataset:
    dataset = corpus()
    parts = partition(dataset, PartitionConfig(clients=4, rule="equal", min_samples=5), 0)
    return federated(dataset, parts, ("test",), limit=6, seed=0)


def test_a_view_answers_as_the_whole_data_set_does(whole: FederatedDataset) -> None:
    for name in whole.clients:
        view = whole.of_client(name, whole.evaluation)
        for split in SPLITS:
            own, same = view.samples(name, split), whole.samples(name, split)
            assert own.owner == same.owner == f"{name}/{split}"
            assert own.rows.tolist() == same.rows.tolist() and own.rows.dtype == same.rows.dtype
            assert own.labels.tolist() == same.labels.tolist()
            assert [view.inputs[row] for row in own.rows] == [whole.inputs[row] for row in own.rows]
        assert view.everyone("test").rows.tolist() == whole.everyone("test").rows.tolist()
        assert view.class_names == whole.class_names and view.kind == whole.kind


def test_a_view_holds_no_other_clients_texts(whole: FederatedDataset) -> None:
    view = whole.of_client("client-1")
    own = np.concatenate([view.samples("client-1", split).rows for split in SPLITS])
    held = pickle.dumps(view)
    for row, text in enumerate(corpus().inputs):
        assert (text.encode() in held) == (row in own)
    assert len(view.inputs) == len(own) and list(view.clients) == ["client-1"]
    other = whole.samples("client-2", "train").rows[0]
    with pytest.raises(KeyError, match=f"row {other} is not held here"):
        view.inputs[other]
    with pytest.raises(FedmsError, match=r"^no client 'client-2' in this data set; it holds client-1$"):
        view.samples("client-2", "train")
    with pytest.raises(FedmsError, match="no client 'client-2'"):
        view.of_client("client-2")


def test_evaluation_rows_come_only_to_those_who_are_handed_them(whole: FederatedDataset) -> None:
    with pytest.raises(FedmsError, match="everyone's test samples are not held here"):
        whole.of_client("client-0").everyone("test")
    with pytest.raises(FedmsError, match="everyone's validation samples are not held here"):
        whole.everyone("validation")
    view = whole.of_client("client-0", whole.evaluation)
    everyone, own = view.everyone("test"), np.concatenate([view.samples("client-0", s).rows for s in SPLITS])
    assert len(everyone) == 6
    held = pickle.dumps(view)
    for row, text in enumerate(corpus().inputs):
        assert (text.encode() in held) == (row in own or row in everyone.rows)


def test_counts_are_of_training_and_validation(whole: FederatedDataset) -> None:
    dataset = corpus()
    parts = partition(dataset, PartitionConfig(clients=4, rule="equal", min_samples=5), 0)
    assert whole.counts().tolist() == parts.counts(dataset.labels, 3).tolist()
    assert whole.of_client("client-3").counts().tolist() == [whole.counts()[3].tolist()]


def test_a_view_of_pictures_holds_the_paths_of_its_own(tmp_path: Path) -> None:
    for row in range(24):
        folder = tmp_path / "ab"[row % 2]
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (row, 0, 0)).save(folder / f"picture-{row:02d}.png")
    dataset = load(DataConfig(source=str(tmp_path)), 0)
    parts = partition(dataset, PartitionConfig(clients=2, rule="equal", min_samples=3), 0)
    view = federated(dataset, parts).of_client("client-0")
    held = pickle.dumps(view)
    assert held.count(b"picture-") == 12
    for split in SPLITS:
        for row in view.samples("client-0", split).rows:
            assert view.inputs[row].getpixel((0, 0)) == dataset.inputs[row].getpixel((0, 0))


def test_a_site_opens_a_file_of_its_own(whole: FederatedDataset, tmp_path: Path) -> None:
    """What a real site does: one client, from its own file, with the class names of the federation."""
    view = whole.of_client("client-2")
    own = view.rows
    lines = [f"{text},{whole.class_names[label]}" for text, label in zip(own.inputs, own.labels, strict=True)]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    read = load(DataConfig(source=str(tmp_path / "own.csv")), 0)
    assert read.class_names == whole.class_names
    rows = Rows(own.numbers, read.inputs, read.labels)
    site = FederatedDataset("text", whole.class_names, {"client-2": view.clients["client-2"]}, rows)
    for split in SPLITS:
        mine, theirs = site.samples("client-2", split), view.samples("client-2", split)
        assert mine.rows.tolist() == theirs.rows.tolist() and mine.labels.tolist() == theirs.labels.tolist()
        assert [site.inputs[row] for row in mine.rows] == [view.inputs[row] for row in mine.rows]


def test_open_rows_grow_block_by_block() -> None:
    def block(*numbers: int) -> Rows:
        return Rows(np.array(numbers), [f"text {n}" for n in numbers], np.zeros(len(numbers), dtype=np.int64))

    rows = OpenRows()
    for missing in (0, -1, 7):
        with pytest.raises(KeyError, match="is not held here"):
            rows[missing]
    rows.add(block(3, 9))
    rows.add(block())
    rows.add(block(0, 3, 40))
    assert [rows[row] for row in (0, 3, 9, 40)] == ["text 0", "text 3", "text 9", "text 40"]
    assert len(rows) == 4
    with pytest.raises(KeyError, match="row 8 is not held here"):
        rows[8]
    with pytest.raises(KeyError, match="row 1 is not held here"):
        block(0, 3).positions(np.array([0, 1]))
    with pytest.raises(KeyError, match="row 4 is not held here"):
        block(0, 3).select(np.array([4]))


def test_a_client_without_test_samples_has_none() -> None:
    none = np.array([], dtype=np.int64)
    rows = Rows(np.array([5, 7]), ["x", "y"], np.array([0, 1]))
    site = FederatedDataset(
        "text", ("a", "b"), {"me": ClientSplit("me", np.array([5]), np.array([7]), none)}, rows
    )
    assert len(site.samples("me", "test")) == 0 and site.counts().tolist() == [[1, 1]]
