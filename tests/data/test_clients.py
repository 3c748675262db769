"""A folder in which each file, or each sub-folder, is one client."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedms.config import load_config
from fedms.core.errors import FedmsError
from fedms.data.federated import SPLITS
from fedms.data.partition import Partition
from fedms.data.sources import Dataset
from fedms.federation.world import divided

Held = dict[str, dict[str, list[str]]]


def rows(name: str, labels: str = "ab", count: int = 20) -> list[tuple[str, str]]:
    return [(f"{name} {number}", labels[number % len(labels)]) for number in range(count)]


def write(path: Path, samples: list[tuple[str, str]]) -> None:
    """A table in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in samples))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        texts, labels = zip(*samples, strict=True)
        parquet.write_table(pyarrow.table({"label": list(labels), "text": list(texts)}), path)
    else:
        separator = "," if path.suffix == ".csv" else "\t"
        path.write_text("".join(separator.join(row) + "\n" for row in [("text", "label"), *samples]))


def picture(path: Path, brightness: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (brightness,) * 3).save(path)


def opened(folder: Path, *overrides: str) -> tuple[Dataset, Partition]:
    return divided(load_config({"data": {"source": str(folder)}, "partition": {"rule": "files"}}, overrides))


def held(folder: Path, *overrides: str) -> Held:
    """The texts of each client and split, in their order."""
    dataset, parts = opened(folder, *overrides)
    return {
        client.name: {split: [dataset.inputs[row] for row in getattr(client, split)] for split in SPLITS}
        for client in parts.clients
    }


def test_each_file_is_a_client_of_its_name_in_any_format(tmp_path):
    for name in ("north.csv", "south.tsv", "east.jsonl", "St. Mary.parquet"):
        write(tmp_path / name, rows(name))
    found = held(tmp_path)
    assert list(found) == ["St. Mary", "east", "north", "south"]
    for name, splits in found.items():
        texts = [text for split in SPLITS for text in splits[split]]
        assert {text.rpartition(".")[0] for text in texts} == {name}, "its own samples alone"
        assert sorted(map(len, splits.values())) == [2, 4, 14]
    assert found == held(tmp_path) and found != held(tmp_path, "seed=1")


def test_a_client_keeps_the_splits_that_it_has(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / "all" / f"{split}.csv", rows(split))
    write(tmp_path / "tested" / "train.csv", rows("train"))
    write(tmp_path / "tested" / "test.jsonl", rows("test"))
    write(tmp_path / "judged" / "train.csv", rows("train"))
    write(tmp_path / "judged" / "validation.csv", rows("val"))
    write(tmp_path / "alone" / "train.csv", rows("train"))
    found = held(tmp_path)
    texts = {split: [text for text, _ in rows(split)] for split in ("train", "val", "test")}
    assert found["all"] == {"train": texts["train"], "validation": texts["val"], "test": texts["test"]}
    assert found["tested"]["test"] == texts["test"]
    assert len(found["tested"]["validation"]) == 2 and len(found["tested"]["train"]) == 18
    assert found["judged"]["validation"] == texts["val"]
    assert len(found["judged"]["test"]) == 4 and len(found["judged"]["train"]) == 16
    assert sorted(map(len, found["alone"].values())) == [2, 4, 14]


def test_a_client_draws_the_same_splits_without_the_others(tmp_path):
    for name in ("north", "south", "west"):
        write(tmp_path / "all" / f"{name}.csv", rows(name, count=30 + len(name)))
    write(tmp_path / "one" / "south.csv", rows("south", count=35))
    assert held(tmp_path / "one")["south"] == held(tmp_path / "all")["south"]


def test_classes_are_the_sorted_union_and_one_client_may_know_a_class_alone(tmp_path):
    write(tmp_path / "one.csv", rows("one", "cb"))
    write(tmp_path / "two.csv", rows("two", "da"))
    dataset, parts = opened(tmp_path)
    assert dataset.class_names == ("a", "b", "c", "d")
    assert (parts.counts(dataset.labels, 4) > 0).tolist() == [
        [False, True, True, False],
        [True, False, False, True],
    ]


def test_clients_may_be_folders_of_pictures_by_class(tmp_path):
    for number in range(20):
        for label, brightness in (("dark", 10), ("bright", 200)):
            picture(tmp_path / "one" / label / f"{number:02}.png", brightness)
            picture(tmp_path / "two" / "train" / label / f"{number:02}.png", brightness)
            picture(tmp_path / "two" / "test" / label / f"{number:02}.png", brightness + 1)
    dataset, parts = opened(tmp_path)
    assert [client.name for client in parts.clients] == ["one", "two"]
    assert dataset.class_names == ("bright", "dark")
    two = parts.clients[1]
    assert {dataset.inputs[row].getpixel((0, 0))[0] for row in two.test} == {11, 201}
    assert len(two.test) == 40 and len(two.train) + len(two.validation) == 40


def test_hidden_entries_are_no_clients(tmp_path):
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, rows(name))
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    assert list(held(tmp_path)) == ["a", "b"]


def test_the_number_of_clients_follows_from_the_folder(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.csv", rows(name))
    assert len(held(tmp_path, "partition.clients=3")) == 3
    with pytest.raises(FedmsError, match=r"partition.clients: 5, but data.source holds 3 .*left out"):
        held(tmp_path, "partition.clients=5")
    with pytest.raises(FedmsError, match=r"federation.cohort: 4 is more than partition.clients \(3\)"):
        held(tmp_path, "federation.cohort=4")


def test_what_a_client_lacks_is_told_in_one_line(tmp_path):
    write(tmp_path / "a.csv", rows("a"))
    write(tmp_path / "b.csv", rows("b", count=9))
    with pytest.raises(FedmsError, match=r"^b would hold 9 samples .*: use a smaller partition.min_samples"):
        held(tmp_path)


def files(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            write(folder / name, rows(name))

    return make


def other_columns(folder: Path) -> None:
    files("a.csv")(folder)
    (folder / "b.csv").write_text("text,category\nhello,a\n")


def empty_file(folder: Path) -> None:
    files("a.csv")(folder)
    (folder / "b.csv").write_text("text,label\n")


def empty_folder(folder: Path) -> None:
    files("a/train.csv")(folder)
    (folder / "b").mkdir()


def loose_pictures(folder: Path) -> None:
    picture(folder / "cats" / "1.png", 3)


def pictures_and_texts(folder: Path) -> None:
    files("a/train.csv")(folder)
    picture(folder / "b" / "dark" / "1.png", 3)


REFUSED = {
    "nothing": (lambda folder: None, "holds no clients"),
    "mixed": (files("a.csv", "b/train.csv"), r"files \(a.csv\) beside folders \(b\)"),
    "splits": (files("train.csv", "test.csv"), "test.csv: is named as a split, not as a client"),
    "split folders": (files("train/a.csv", "test/b.csv"), "test: is named as a split"),
    "two formats": (files("a.csv", "a.tsv"), "a.csv and a.tsv are two clients of the name 'a'"),
    "case": (files("A.csv", "a.csv"), "clients 'A' and 'a' differ in nothing"),
    "comma": (files("a,b.csv", "c.csv"), "'a,b' cannot name a client: no `/`"),
    "sheet": (files("a.csv", "b.xlsx"), r"b.xlsx: cannot read this kind of file.*save the sheet as CSV"),
    "notes": (files("a.csv", "README.md"), "README.md: cannot read this kind of file"),
    "columns": (other_columns, "b.csv: has no column 'label', but .*a.csv has one"),
    "texts and pictures": (pictures_and_texts, "b: has no column 'text', but .*train.csv has one"),
    "no rows": (empty_file, "b.csv: holds no samples"),
    "empty folder": (empty_folder, "b: a client's folder holds train"),
    "no train": (files("a/test.csv"), "a: has no split named train"),
    "another file": (files("a/train.csv", "a/tests.csv"), "tests.csv: a client's folder holds train"),
    "a folder beside": (files("a/train.csv", "a/test/0.csv"), "test: a client's folder holds train"),
    "one unnamed file": (files("a/data.csv"), "data.csv: a client's folder holds train"),
    "no classes": (loose_pictures, r"1.png: a client's folder holds train"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_one_line(tmp_path, case):
    make, message = REFUSED[case]
    make(tmp_path)
    with pytest.raises(FedmsError, match=message) as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


def test_the_source_must_be_a_folder(tmp_path):
    write(tmp_path / "a.csv", rows("a"))
    for source in (tmp_path / "a.csv", tmp_path / "none", "assistant"):
        with pytest.raises(FedmsError, match="must be a folder of the clients' files"):
            opened(Path(source))


def test_a_limit_counts_over_all_clients(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.csv", rows(name, count=40))
    dataset, parts = opened(tmp_path, "data.limit=50")
    assert len(dataset.labels) == 50
    assert dataset.owner is not None
    assert sorted(np.concatenate([[*c.train, *c.validation, *c.test] for c in parts.clients])) == [*range(50)]
