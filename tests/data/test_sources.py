"""Sources: every format becomes the same data set, and whatever is wrong with one is one line."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.data.sources import Dataset, load

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = [
    {"text": 'turn on, "now"', "intent": "on", "room": "hall"},
    {"text": "lights off\nplease", "intent": "off", "room": "attic"},
    {"text": "café an", "intent": "on", "room": "hall"},
    {"text": "NA", "intent": "null", "room": ""},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the name asks for."""
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def paint(path: Path, colour: tuple[int, int, int], mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).convert(mode).save(path)
    return path


def fails(source: object, seed: int = 0, **keys: Any) -> str:
    with pytest.raises(FedmsError) as caught:
        load(DataConfig(source=str(source), **keys), seed)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def per_class(data: Dataset) -> dict[str, int]:
    return dict(
        zip(data.class_names, np.bincount(data.labels, minlength=len(data.class_names)).tolist(), strict=True)
    )


# --- text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_data(tmp_path: Path, suffix: str) -> None:
    data = load(DataConfig(source=str(write(tmp_path / f"requests{suffix}", ROWS))), 0)
    assert data.kind == "text"
    assert list(data.inputs) == [row["text"] for row in ROWS]  # "NA" and "null" are words here, not gaps
    assert data.class_names == ("null", "off", "on")
    assert data.labels.tolist() == [2, 1, 2, 0] and data.labels.dtype == np.int64
    assert set(data.columns) == {"room"} and data.columns["room"].tolist() == ["hall", "attic", "hall", ""]
    assert data.is_test is None


def test_classes_are_the_same_in_typed_and_untyped_formats(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 10}, {"text": "b", "label": 2}, {"text": "c", "label": 10}]
    found = [
        load(DataConfig(source=str(write(tmp_path / f"d{suffix}", rows))), 0).class_names
        for suffix in (".csv", ".jsonl", ".parquet")
    ]
    assert found == [("10", "2")] * 3


def test_a_folder_of_files_joins_validation_to_train_and_keeps_test_apart(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS[:2])
    write(tmp_path / "validation.jsonl", ROWS[2:])
    write(tmp_path / "test.parquet", [{"text": "out", "intent": "off", "extra": 1}])
    (tmp_path / "README.md").write_text("hello")
    data = load(DataConfig(source=str(tmp_path)), 0)
    assert list(data.inputs) == [*(row["text"] for row in ROWS), "out"]
    assert data.is_test is not None and data.is_test.tolist() == [False] * 4 + [True]
    assert data.columns == {}  # neither column is in all files


def test_several_parquet_files_make_one_split(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"train-0000{i}-of-00002.parquet", ROWS[2 * i : 2 * i + 2])
    assert list(load(DataConfig(source=str(tmp_path)), 0).inputs) == [row["text"] for row in ROWS]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.csv",
        [
            {"Text": "a", "note": "x", "Label": "1", "mood": "up"},
            {"Text": "b", "note": "y", "Label": "2", "mood": "up"},
        ],
    )
    assert list(load(DataConfig(source=str(path)), 0).inputs) == ["a", "b"]  # found whatever the case
    named = load(DataConfig(source=str(path), text="note", label="Text"), 0)
    assert (
        list(named.inputs) == ["x", "y"]
        and named.class_names == ("a", "b")
        and set(named.columns) == {"Label", "mood"}
    )


def test_a_saved_datasets_folder_keeps_the_order_of_its_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "unused", "ant"])}
    )
    part = datasets.Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [2, 0, 0]}, features=features)
    datasets.DatasetDict({"train": part, "test": part.select([1])}).save_to_disk(tmp_path / "dict")
    data = load(DataConfig(source=str(tmp_path / "dict")), 0)
    assert data.class_names == ("zebra", "ant") and data.labels.tolist() == [1, 0, 0, 0]
    assert list(data.inputs) == ["a", "b", "c", "b"] and data.is_test is not None
    part.save_to_disk(tmp_path / "single")
    assert load(DataConfig(source=str(tmp_path / "single")), 0).is_test is None


def test_limit_holds_for_each_split_and_keeps_order_and_classes(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": f"c{i % 40}"} for i in range(80)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "test.csv", rows[:30])
    data, again, other = (load(DataConfig(source=str(tmp_path), limit=20), seed) for seed in (0, 0, 1))
    assert data.is_test is not None and data.is_test.tolist() == [False] * 20 + [True] * 20
    order = [int(text) for text in data.inputs]
    assert order[:20] == sorted(order[:20]) and order[20:] == sorted(order[20:]) and max(order[20:]) < 30
    assert [data.class_names[label] for label in data.labels] == [f"c{i % 40}" for i in order]
    assert len(data.class_names) == 40  # from before the limit
    assert list(again.inputs) == list(data.inputs) != list(other.inputs)


# --- images -------------------------------------------------------------------------------------------------


def test_an_image_folder_is_decoded_lazily(tmp_path: Path) -> None:
    paint(tmp_path / "red" / "0.png", (255, 0, 0), "P")
    late = paint(tmp_path / "red" / "deep" / "1.PNG", (250, 0, 0))
    paint(tmp_path / "blue" / "2.jpg", (0, 0, 255), "L")
    (tmp_path / "blue" / "notes.txt").write_text("not an image")
    data = load(DataConfig(source=str(tmp_path)), 0)
    assert data.kind == "image" and data.class_names == ("blue", "red") and data.labels.tolist() == [0, 1, 1]
    assert all(image.mode == "RGB" and image.size == (8, 6) for image in data.inputs)
    assert data.inputs[1].getpixel((0, 0)) == (255, 0, 0)
    assert len(data.inputs[1:]) == 2
    late.write_bytes(b"broken")
    with pytest.raises(FedmsError, match=r"row 3: cannot read the image: [^\n]+$"):
        data.inputs[2]
    assert pickle.loads(pickle.dumps(data)).inputs[1].getpixel((0, 0)) == (255, 0, 0)


def test_an_image_folder_can_have_splits(tmp_path: Path) -> None:
    for split, classes in {"train": "ab", "validation": "a", "test": "b"}.items():
        for name in classes:
            paint(tmp_path / split / name / "x.png", (1, 2, 3))
    data = load(DataConfig(source=str(tmp_path)), 0)
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.is_test is not None and data.is_test.tolist() == [False, False, False, True]
    paint(tmp_path / "test" / "new" / "x.png", (1, 2, 3))
    assert "class 'new' stands in the test split" in fails(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    assert "empty: holds no images" in fails(tmp_path)


@pytest.mark.parametrize("declared", [True, False])
def test_images_in_parquet_need_no_copy_on_disk(
    tmp_path: Path, declared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    pictures = [
        {"bytes": paint(tmp_path / f"{i}.png", (i, 0, 0)).read_bytes(), "path": None} for i in range(3)
    ]
    rows = {"picture": pictures, "label": [1, 0, 1], "domain": [0, 1, 1]}
    if declared:
        names = {
            "label": datasets.ClassLabel(names=["dog", "cat"]),
            "domain": datasets.ClassLabel(names=["photo", "sketch"]),
        }
        features = datasets.Features({"picture": datasets.Image(), **names})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    else:
        write(
            tmp_path / "d.parquet",
            [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)],
        )
    data = load(DataConfig(source=str(tmp_path / "d.parquet")), 0)
    assert [image.getpixel((0, 0)) for image in data.inputs] == [(i, 0, 0) for i in range(3)]
    assert data.class_names == (("dog", "cat") if declared else ("0", "1")) and data.labels.tolist() == [
        1,
        0,
        1,
    ]
    assert data.columns["domain"].tolist() == (["photo", "sketch", "sketch"] if declared else ["0", "1", "1"])
    assert pickle.loads(pickle.dumps(data)).inputs[2].getpixel((0, 0)) == (2, 0, 0)
    assert not (tmp_path / "cache").exists()


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"", "holds no samples"),
        ("d.csv", b"text,label\n", "holds no samples"),
        ("d.csv", b"text,label\na,x\nb,y,z\n", "line 3 has 3 values, the header names 2 columns"),
        ("d.csv", b"text,label\na,x\nb\n", "line 3 has 1 values"),
        ("d.csv", b'text,label\n"a,x\n', "cannot be read"),
        ("d.csv", b"text,text\na,b\n", "names a column twice"),
        ("d.csv", b"text,label\na,x\n\xff\xfe,y\n", "not a text file in UTF-8"),
        ("d.csv", b"text,label\na,x\nb,x\n", "at least 2 classes"),
        ("d.csv", b"text,label\na,x\nb, \n", "row 2 has no label"),
        ("d.csv", b"text,label\na,x\n,y\n", "row 2 has no text"),
        (
            "d.csv",
            b"words,label\na,x\nb,y\n",
            "no column found for data.text or data.image, name it there; columns: words, label",
        ),
        (
            "d.csv",
            b"text,mood\na,x\nb,y\n",
            "no column found for data.label, name it there; columns: text, mood",
        ),
        ("d.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "line 2 is not valid JSON"),
        ("d.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}\n', "row 2 has no label"),
        ("d.jsonl", b'{"text": "a", "label": 1}\n3\n', "row 2 is not an object"),
        ("d.json", b'[\n{"text": "a", "label": 1},\n{"text": "b" "label": 2}]', "line 3 is not valid JSON"),
        ("d.parquet", b"PAR1 not really", "not a readable Parquet file"),
        (
            "d.pickle",
            b"cos\nsystem\n",
            "cannot read this kind of file; known: .csv, .tsv, .jsonl, .json, .parquet",
        ),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    found = fails(tmp_path / name)
    assert message in found and str(tmp_path / name) in found


def test_a_null_or_an_unpublished_label_is_named(tmp_path: Path) -> None:
    import datasets

    write(tmp_path / "null.parquet", [{"text": "a", "label": 1}, {"text": "b", "label": None}])
    assert "row 2 has no label" in fails(tmp_path / "null.parquet")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features).to_parquet(
        tmp_path / "hidden.parquet"
    )
    assert "row 2 has no label" in fails(tmp_path / "hidden.parquet")


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ROWS)
    for key in ("text", "image", "label"):
        named: dict[str, Any] = {key: "nothing"}
        message = fails(path, **named)
        assert str(path) in message and "'nothing'" in message and "columns: text, intent, room" in message
    assert "both given" in fails(path, text="text", image="room")
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.csv", [{"text": "a", "kind": "on"}])
    assert "test.csv: no column 'intent'" in fails(tmp_path)


def test_a_folder_says_what_it_lacks(tmp_path: Path) -> None:
    assert "neither train.*" in fails(tmp_path)
    write(tmp_path / "test.csv", ROWS)
    assert "no split named train" in fails(tmp_path)
    write(tmp_path / "train.csv", ROWS[:1])
    assert "class 'null' stands in the test split, but no training sample has it" in fails(tmp_path)
    write(tmp_path / "train.jsonl", ROWS)
    assert "train is there twice" in fails(tmp_path)
    assert "no such file or folder" in fails(tmp_path / "elsewhere")
    assert "no such file or folder" in fails("elsewhere.csv")


def test_the_hub_out_of_reach_is_one_line() -> None:
    code = "import sys; from fedms.config.data import DataConfig; from fedms.data.sources import load\n"
    code += "try: load(DataConfig(source='nobody/nothing'), 0)\n"
    code += "except Exception as error: print(type(error).__name__, error)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert (
        done.stdout.startswith("FedmsError nobody/nothing: cannot be loaded: ")
        and done.stdout.count("\n") == 1
    ), done.stderr


def test_a_hub_name_can_have_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def answer(*name: object) -> datasets.DatasetDict:
        asked.append(name)
        rows = {"text": ["a", "b"], "label": ["x", "y"]}
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_dict(rows) for split in ("train", "test", "unsupervised")}
        )

    builder = type("Parquet", (), {"__module__": "datasets.packaged_modules.parquet.parquet"})
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *name: builder())
    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert len(load(DataConfig(source="clinc/clinc_oos:plus"), 0).inputs) == 4
    load(DataConfig(source="PolyAI/banking77"), 0)
    assert asked == [("clinc/clinc_oos", "plus"), ("PolyAI/banking77", None)]
    builder.__module__ = "datasets.packaged_modules.webdataset.webdataset"  # whose parts may be pickles
    assert "a data set of the format webdataset; known: arrow" in fails("somebody/something")
    assert len(asked) == 2


# --- real data ----------------------------------------------------------------------------------------------


def test_the_embedded_corpus() -> None:
    data = load(DataConfig(), 0)
    assert data.kind == "text" and data.is_test is None
    assert len(data.class_names) >= 40 and min(per_class(data).values()) >= 40
    assert len(set(data.columns["domain"])) >= 5
    assert load(DataConfig(limit=50), 0).labels.shape == (50,)


@pytest.mark.skipif(
    not (SHARED / "banking77").is_dir(), reason="needs ../shared/data/banking77, which is not here"
)
def test_banking77() -> None:
    data = load(DataConfig(source=str(SHARED / "banking77")), 0)
    assert len(data.inputs) == 13_083 and len(data.class_names) == 77
    assert data.is_test is not None and data.is_test.sum() == 3_080


@pytest.mark.skipif(not (SHARED / "pacs").is_dir(), reason="needs ../shared/data/pacs, which is not here")
def test_pacs() -> None:
    data = load(DataConfig(source=str(SHARED / "pacs"), limit=100), 0)
    assert data.class_names == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert len(data.inputs) == 200 and data.inputs[150].size == (112, 112)
    assert set(data.columns["domain"]) == {"art_painting", "cartoon", "photo", "sketch"}
