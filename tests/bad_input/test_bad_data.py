"""Bad data sets and inputs: one line that names the file, exit code 1, nothing written, nothing executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from holding import Mine
from PIL import Image

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.data.sources import load
from tiny_run import write_pictures


def table(*rows: bytes, head: bytes = b"text,label") -> bytes:
    return b"\n".join([head, *rows, b""])


def enough(suffix: str = "") -> list[bytes]:
    return [f"hello {number}{suffix},{'ab'[number % 2]}".encode() for number in range(60)]


def parquet(**columns: list[object]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = io.BytesIO()
    pq.write_table(pa.table(columns), held)
    return held.getvalue()


GOOD_PARQUET = parquet(text=[f"hello {n}" for n in range(60)], label=["a", "b"] * 30)
OBJECTS = json.dumps([{"text": f"hello {n}", "label": "ab"[n % 2]} for n in range(60)])

FILES: dict[str, tuple[str, bytes, str]] = {
    "empty CSV": ("d.csv", b"", "d.csv: holds no samples"),
    "blank CSV": ("d.csv", b"\n\n\n", "d.csv: "),
    "header only": ("d.csv", b"text,label\n", "d.csv: holds no samples"),
    "no header": ("d.csv", b"\n".join(enough()), "no column found for data.text"),
    "wrong columns": ("d.csv", table(*enough(), head=b"words,mood"), "no column found for data.text"),
    "no label": ("d.csv", table(*enough(), head=b"text,mood"), "no column found for data.label"),
    "a column twice": ("d.csv", table(*enough(), head=b"text,text"), "names a column twice"),
    "one class": ("d.csv", table(*[b"hello,a"] * 60), "at least 2 classes"),
    "a long line": ("d.csv", table(*enough(), b"a,b,c"), "line 62 has 3 values"),
    "a short line": ("d.csv", table(*enough(), b"a"), "line 62 has 1 values"),
    "an open quote": ("d.csv", table(*enough(), b'"a,b'), "cannot be read"),
    "a quote in the middle": ("d.csv", table(*enough(), b'"a"b,c'), "line 62 cannot be read"),
    "an endless field": ("d.csv", table(*enough(), b'"' + b"x" * 200_000 + b",a"), "cannot be read"),
    "no text": ("d.csv", table(*[b",a", b",b"] * 30), "row 1 has no text"),
    "blank text": ("d.csv", table(*enough(), b"   ,a"), "row 61 has no text"),
    "no class": ("d.csv", table(*enough(), b"hello,"), "row 61 has no label"),
    "not UTF-8": ("d.csv", table(*enough(), b"caf\xe9,a"), "not a text file in UTF-8 (byte"),
    "UTF-16": ("d.csv", "text,label\nhello,a\n".encode("utf-16"), "not a text file in UTF-8"),
    "NUL in the header": (
        "d.csv",
        table(*enough(), head=b"te\0xt,label"),
        "no column found for data.text|NUL",
    ),
    "binary": ("d.csv", bytes(range(256)) * 10, "d.csv: "),
    "CSV called TSV": ("d.tsv", table(*enough()), "set data.separator=','"),
    "too few samples": ("d.csv", table(*enough()[:8]), "partition.min_samples (10)"),
    "empty JSONL": ("d.jsonl", b"", "holds no samples"),
    "bad JSON in line 2": ("d.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "line 2 is not valid JSON"),
    "a number in line 2": ("d.jsonl", b'{"text": "a", "label": 1}\n3\n', "row 2 is not an object"),
    "null in line 1": ("d.jsonl", b"null\n", "row 1 is not an object"),
    "lists for texts": ("d.jsonl", b'{"text": ["a"], "label": 1}\n', "row 1 has a list for its text"),
    "a key that is missing": ("d.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}\n', "row 2 has no label"),
    "not a number": (
        "d.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "b", "label": NaN}\n',
        "row 2 has no label",
    ),
    "half a character": (
        "d.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "\\ud800", "label": 2}\n',
        "line 2 is not valid JSON",
    ),
    "too deep": ("d.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
    "too many digits": (
        "d.jsonl",
        b'{"text": "a", "label": ' + b"9" * 5000 + b"}",
        "line 1 is not valid JSON",
    ),
    "two values a line": (
        "d.jsonl",
        b'{"text": "a", "label": 1} {"text": "b", "label": 2}\n',
        "line 1 is not valid JSON",
    ),
    "JSON cut short": ("d.json", OBJECTS[:-20].encode(), "is not valid JSON"),
    "JSON in Latin-1": (
        "d.json",
        OBJECTS.replace("hello 1", "caf\xe9").encode("latin-1"),
        "not a text file in UTF-8",
    ),
    "no Parquet": ("d.parquet", b"PAR1 not really", "d.parquet: not a readable Parquet file"),
    "empty Parquet": ("d.parquet", b"", "d.parquet: not a readable Parquet file"),
    "Parquet cut short": ("d.parquet", GOOD_PARQUET[:-10], "d.parquet: not a readable Parquet file"),
    "Parquet without its beginning": (
        "d.parquet",
        GOOD_PARQUET[100:],
        "d.parquet: not a readable Parquet file",
    ),
    "Parquet without rows": ("d.parquet", parquet(text=[], label=[]), "d.parquet: "),
    "Parquet with a gap": ("d.parquet", parquet(text=["a", None], label=["x", "y"]), "row 2 has no text"),
    "Parquet of other columns": (
        "d.parquet",
        parquet(words=["a"], mood=["x"]),
        "no column found for data.text",
    ),
    "a pickle": ("d.pkl", pickle.dumps(Mine()), "cannot read this kind of file"),
    "a pickle called CSV": ("d.csv", pickle.dumps(Mine()), "d.csv: "),
    "a pickle called Parquet": ("d.parquet", pickle.dumps(Mine()), "not a readable Parquet file"),
    "a NumPy array": ("d.npy", b"\x93NUMPY", "cannot read this kind of file"),
    "a script": ("dataset.py", b"import os; os.mkdir('executed')", "cannot read this kind of file"),
    "a sheet": ("d.xlsx", b"PK\x03\x04", "cannot read this kind of file"),
    "no suffix": ("data", table(*enough()), "cannot read this kind of file"),
}


@pytest.mark.parametrize(("name", "content", "says"), FILES.values(), ids=FILES)
def test_a_bad_file(place, refused, name, content, says):
    (place / name).write_bytes(content)
    line = refused(["run", "good.yaml", "--set", f"data.source=./{name}"], 1)
    assert any(word in line for word in says.split("|")), line
    assert not (place / "executed").exists()


def split_twice(folder: Path) -> None:
    for suffix in ("csv", "tsv"):
        (folder / f"train.{suffix}").write_bytes(table(*enough()))


def only_a_test(folder: Path) -> None:
    (folder / "test.csv").write_bytes(table(*enough()))


def a_new_class(folder: Path) -> None:
    (folder / "train.csv").write_bytes(table(*enough()))
    (folder / "test.csv").write_bytes(table(b"hello,c"))


def an_empty_test(folder: Path) -> None:
    (folder / "train.csv").write_bytes(table(*enough()))
    (folder / "test.csv").write_bytes(table())


def other_columns(folder: Path) -> None:
    (folder / "train.csv").write_bytes(table(*enough()))
    (folder / "test.csv").write_bytes(table(*enough(), head=b"text,mood"))


def a_script(folder: Path) -> None:
    (folder / f"{folder.name}.py").write_text("import os; os.mkdir('executed')")
    (folder / "dataset.py").write_text("import os; os.mkdir('executed')")


def pickles(folder: Path) -> None:
    (folder / "train.pkl").write_bytes(pickle.dumps(Mine()))
    np.save(folder / "train.npy", np.array([Mine()], dtype=object), allow_pickle=True)


def a_saved_one_in_pieces(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def a_saved_one_of_nothing(folder: Path) -> None:
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')


def a_saved_one_that_leads_out(folder: Path) -> None:
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "../../outside/secret.txt"}], "_format_type": None})
    )
    (folder / "dataset_info.json").write_text("{}")


def pictures(folder: Path) -> None:
    shutil.rmtree(folder)
    write_pictures(folder)


def an_empty_class(folder: Path) -> None:
    pictures(folder)
    (folder / "empty").mkdir()


def one_class_of_pictures(folder: Path) -> None:
    pictures(folder)
    shutil.rmtree(folder / "dark")


def no_pictures(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "x.txt").write_text("x")


def a_class_in_no_encoding(folder: Path) -> None:
    pictures(folder)
    (folder / "dark").rename(folder / os.fsdecode(b"\xff"))


def archives(folder: Path) -> None:
    with zipfile.ZipFile(folder / "train.zip", "w") as file:
        file.writestr("../../outside/escaped.txt", "x")
    with tarfile.open(folder / "train.tar", "w") as file:
        file.addfile(tarfile.TarInfo("../../outside/escaped.txt"))


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda folder: None, "d: holds neither train.*"),
    "a split twice": (split_twice, "train is there twice"),
    "only a test": (only_a_test, "no split named train"),
    "a class of the test alone": (a_new_class, "class 'c' stands in the test split"),
    "an empty test": (an_empty_test, "holds no samples in the test split"),
    "other columns": (other_columns, "no column 'label'"),
    "a loading script": (a_script, "d: holds neither train.*"),
    "pickles": (pickles, "d: holds neither train.*"),
    "archives": (archives, "d: holds neither train.*"),
    "a saved one in pieces": (a_saved_one_in_pieces, "d: cannot be loaded"),
    "a saved one of nothing": (a_saved_one_of_nothing, "d: cannot be loaded"),
    "a saved one that leads out": (a_saved_one_that_leads_out, "d: cannot be loaded"),
    "a class without pictures": (an_empty_class, "empty: holds no images"),
    "pictures of one class": (one_class_of_pictures, "every sample is of the class 'bright'"),
    "no pictures": (no_pictures, "a: holds no images"),
    "a class in no encoding": (a_class_in_no_encoding, "is not in UTF-8"),
    "pictures for a model of text": (pictures, "reads text, but the data are image"),
}


@pytest.mark.parametrize(("make", "says"), FOLDERS.values(), ids=FOLDERS)
def test_a_bad_folder(place, refused, make, says):
    (place / "d").mkdir()
    make(place / "d")
    refused(["run", "good.yaml", "--set", "data.source=./d"], 1, says)
    assert not (place / "executed").exists()


def png(width: int, height: int) -> bytes:
    """A picture that claims a size, and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def good_picture(kind: str) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(held, kind)
    return held.getvalue()


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.png", b"", "cannot identify image file"),
    "a text": ("x.png", b"hello", "cannot identify image file"),
    "cut short": ("x.png", good_picture("PNG")[:-30], "cannot read the image"),
    "a JPEG cut short": ("x.jpg", good_picture("JPEG")[:-40], "cannot read the image"),
    "a TIFF cut short": ("x.tif", good_picture("TIFF")[:100], "cannot read the image"),
    "a GIF cut short": ("x.gif", good_picture("GIF")[:40], "cannot read the image"),
    "a bomb": ("x.png", png(30_000, 30_000), "cannot read the image"),
    "a smaller bomb": ("x.png", png(11_000, 11_000), "more than 100,000,000"),
    "a pickle": ("x.png", pickle.dumps(Mine()), "cannot identify image file"),
    "an archive": ("x.png", b"PK\x03\x04", "cannot identify image file"),
}


@pytest.mark.parametrize(("name", "content", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_picture_is_told_before_anything_is_trained(tmp_path, name, content, says):
    write_pictures(tmp_path / "d")
    (tmp_path / "d" / "dark" / name).write_bytes(content)
    data = load(DataConfig(source=str(tmp_path / "d")), 0)
    with pytest.raises(FedmsError, match=says) as caught:
        data.check()
    assert "\n" not in str(caught.value) and "row" in str(caught.value)


def test_a_broken_picture_ends_a_run_before_it_begins(place, refused, checkpoint):
    from transformers import ViTImageProcessor

    shutil.copytree(checkpoint("vit"), place / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place / "vit")
    write_pictures(place / "d")
    (place / "d" / "dark" / "7.png").write_bytes(good_picture("PNG")[:-30])
    sets = ["--set", "data.source=./d", "--set", "model.name=./vit"]
    refused(["run", "good.yaml", *sets], 1, "d: row 46: cannot read the image")
    (place / "d" / "dark" / "7.png").unlink()
    refused(["run", "good.yaml", *sets, "--set", "model.image_size=20"], 2, "model.image_size: ")
    refused(["run", "good.yaml", "--set", "model.name=./vit"], 1, "reads image, but the data are text")
    (place / "vit" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": "x"}}'
    )
    refused(["run", "good.yaml", *sets], 1, "no image processor")


PLACES: dict[str, tuple[str, str]] = {
    "no file": ("nowhere.csv", "nowhere.csv: no such file or folder"),
    "no folder": ("./nowhere", "./nowhere: no such file or folder"),
    "an archive": ("./d.zip", "cannot read this kind of file"),
    "a tarball": ("./d.tar.gz", "cannot read this kind of file"),
    "a device": ("/dev/null", "/dev/null: no such file or folder"),
    "an address": ("https://example.invalid/d.csv", "no such file or folder"),
    "a file address": ("file:///etc/passwd.csv", "no such file or folder"),
    "an archive within": ("zip://train.csv::d.zip", "d.zip"),
    "an endless name": ("x" * 300 + ".csv", "file name too long|no such file"),
    "a column that is not there": ("./said.csv", "no column 'mood'"),
}


@pytest.mark.parametrize(("source", "says"), PLACES.values(), ids=PLACES)
def test_a_bad_source(place, refused, source, says):
    archives(place)
    (place / "train.zip").rename(place / "d.zip")
    (place / "train.tar").rename(place / "d.tar.gz")
    (place / "said.csv").write_bytes(table(*enough()))
    mood = ["--set", "data.label=mood"] if "mood" in says else []
    line = refused(["run", "good.yaml", "--set", f"data.source={source}", *mood], 1)
    assert any(word.lower() in line.lower() for word in says.split("|")), line
