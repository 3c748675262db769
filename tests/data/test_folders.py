"""Folders: what counts as a sample's file, at every level; the splits of a data set; clones of the hub."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.data.folders import is_junk
from fedms.data.sources import Dataset, load

HEAD = "text,label\n"


def read(path: Path, **keys: Any) -> Dataset:
    return load(DataConfig(source=str(path), **keys), 0)


def says(path: Path) -> str:
    with pytest.raises(FedmsError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def paint(path: Path, grey: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path)
    return path


def write(path: Path, *rows: str, head: str = HEAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "\n".join(rows) + "\n")
    return path


# --- what is left out ---------------------------------------------------------------------------------------

JUNK = (
    ".ipynb_checkpoints",
    "__MACOSX",
    ".Trash-1000",
    "@eaDir",
    "__pycache__",
    ".git",
    "$RECYCLE.BIN",
)


@pytest.mark.parametrize("name", JUNK)
@pytest.mark.parametrize("where", ["", "cat", "cat/deep", "train", "train/cat", "train/cat/deep"])
def test_junk_folders_are_left_out_at_every_level(tmp_path: Path, name: str, where: str) -> None:
    base = tmp_path / "train" if where.startswith("train") else tmp_path
    for label in ("cat", "dog"):
        for number in range(3):
            paint(base / label / f"{number}.png")
    paint(base / "cat" / "deep" / "3.png")
    paint(tmp_path / where / name / "0-checkpoint.png")
    paint(tmp_path / where / name / "cat" / "0.png")
    data = read(tmp_path)
    assert data.class_names == ("cat", "dog") and len(data.inputs) == 7
    if name != ".git" and where not in ("", "train"):
        assert any(name in note and "left out" in note for note in data.notes)


@pytest.mark.parametrize(
    "name", ["._0.png", ".hidden.png", "Thumbs.db", ".DS_Store", "desktop.ini", "x.heic"]
)
def test_junk_files_are_left_out_and_told(tmp_path: Path, name: str) -> None:
    for label in ("cat", "dog"):
        paint(tmp_path / label / "0.png")
    (tmp_path / "cat" / name).write_bytes(b"\x00\x05\x16\x07")
    data = read(tmp_path)
    assert len(data.inputs) == 2
    data.check()  # the leftover is not decoded
    silent = name in ("Thumbs.db", ".DS_Store", "desktop.ini")
    assert [name in note for note in data.notes] == ([] if silent else [True])


def test_a_line_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        paint(tmp_path / label / "0.png")
    for number in range(8):
        (tmp_path / "cat" / f"{number}.txt").write_text("x")
    [note] = read(tmp_path).notes
    assert "cat/0.txt, cat/1.txt, cat/2.txt and 5 more" in note


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPE", ".jpeg", ".TIF"])
def test_every_suffix_of_a_picture_counts(tmp_path: Path, suffix: str) -> None:
    for label in ("cat", "dog"):
        path = paint(tmp_path / label / "0.jpg" if "t" not in suffix.lower() else tmp_path / label / "0.tif")
        path.rename(path.with_suffix(suffix))
    data = read(tmp_path)
    assert len(data.inputs) == 2 and data.inputs[0].size == (8, 8)


def test_names_that_are_junk() -> None:
    assert all(map(is_junk, (*JUNK, "._x.jpg", "THUMBS.DB", ".train.csv.swp")))
    assert not any(map(is_junk, ("train", "_other", "x.png", "macosx", "git")))


# --- files of a split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["train-old.csv", "train-2.bak.csv", "train_old.csv", "training.csv", "trainer-1.csv", "train-1a.csv"],
)
def test_a_file_of_another_name_is_not_joined(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.csv", "a,x", "b,y")
    write(tmp_path / name, "old,x")
    data = read(tmp_path)
    assert list(data.inputs) == ["a", "b"]
    assert len(data.notes) == 1 and name in data.notes[0] and "left out" in data.notes[0]


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.csv", "train-1.csv"),
        ("train-00000-of-00002.csv", "train-00001-of-00002.csv"),
        ("train-00000-of-00002-0123456789abcdef.csv", "train-00001-of-00002-fedcba9876543210.csv"),
        ("TRAIN-0.CSV", "TRAIN-1.CSV"),
    ],
)
def test_numbered_files_are_joined(tmp_path: Path, names: tuple[str, str]) -> None:
    for text, name in zip("ab", names, strict=True):
        write(tmp_path / name, f"{text},{text}")
    data = read(tmp_path)
    assert list(data.inputs) == ["a", "b"] and data.notes == ()


def test_numbered_files_must_all_be_there(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00003.csv", "a,x", "b,y")
    write(tmp_path / "train-00002-of-00003.csv", "c,x")
    assert "train has 2 of 3 numbered files; fetch the others" in says(tmp_path)


def test_a_whole_file_beside_numbered_ones_is_a_split_twice(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "a,x", "b,y")
    write(tmp_path / "train-1.csv", "a,x")
    assert "train is there twice: train-1.csv, train.csv; keep one" in says(tmp_path)


def test_hidden_copies_of_a_split_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "a,x", "b,y")
    for place in (".ipynb_checkpoints/train.csv", "._train.csv", "__MACOSX/train.csv", ".train.csv"):
        write(tmp_path / place, "old,x")
    assert list(read(tmp_path).inputs) == ["a", "b"]


# --- clones and folders of files ----------------------------------------------------------------------------


def test_a_clone_of_a_hub_data_set(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in (".gitattributes", "README.md", "dataset_infos.json"):
        (tmp_path / name).write_text("x")
    write(tmp_path / "data" / "train-00000-of-00001.csv", "a,x", "b,y")
    write(tmp_path / "data" / "test-00000-of-00001.csv", "c,y")
    data = read(tmp_path)
    assert list(data.inputs) == ["a", "b", "c"] and data.is_test is not None and data.is_test.tolist()[-1]
    lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "data" / "test-00000-of-00001.csv").write_text(lfs)
    assert "test-00000-of-00001.csv: a Git LFS pointer" in says(tmp_path)


def test_a_clone_with_several_data_sets_names_them(tmp_path: Path) -> None:
    for name in ("plus", "small"):
        write(tmp_path / name / "train.csv", "a,x", "b,y")
    assert f"holds several data sets (plus, small): name one, as in {tmp_path / 'plus'}" in says(tmp_path)
    assert len(read(tmp_path / "small").inputs) == 2


@pytest.mark.parametrize("place", ["", "default"])
def test_files_in_a_folder_of_their_split(tmp_path: Path, place: str) -> None:
    write(tmp_path / place / "train" / "0000.csv", "a,x")
    write(tmp_path / place / "train" / "0001.csv", "b,y")
    write(tmp_path / place / "test" / "anything.csv", "c,x")
    write(tmp_path / place / "test" / ".ipynb_checkpoints" / "anything.csv", "old,x")
    data = read(tmp_path)
    assert list(data.inputs) == ["a", "b", "c"] and data.is_test is not None
    write(tmp_path / place / "train" / "more.tsv", "b\ty", head="text\tlabel\n")
    assert "train: holds files of several formats (0000.csv, 0001.csv, more.tsv)" in says(tmp_path)


def test_pictures_without_a_class_are_named(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "0.png")
    assert "train: its images lie in no sub-folder, so they have no class" in says(tmp_path)
    for label in ("cat", "dog"):
        paint(tmp_path / "train" / label / "0.png")
    write(tmp_path / "train" / "metadata.csv", "x")
    data = read(tmp_path)
    assert len(data.inputs) == 2
    assert len(data.notes) == 1 and "0.png, metadata.csv" in data.notes[0]


def test_a_single_file_of_another_name_is_pointed_at(tmp_path: Path) -> None:
    write(tmp_path / "requests.csv", "a,x", "b,y")
    assert "to read requests.csv, name that file" in says(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir(mode=0)
    assert "cannot be read" in says(tmp_path)
