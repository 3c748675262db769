"""Parquet and `datasets` as users bring them: unknown types, and pictures in every form."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.data.sources import Dataset, load

CASES = Path(__file__).parents[2].parent / "shared" / "cases"


def read(path: Path, **keys: Any) -> Dataset:
    return load(DataConfig(source=str(path), **keys), 0)


def says(path: Path, **keys: Any) -> str:
    with pytest.raises(FedmsError) as caught:
        read(path, **keys)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def png(red: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(held, "PNG")
    return held.getvalue()


def save(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": ["x", "y", "x"], **columns}), path)
    return path


UNKNOWN = {
    "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "map in a list": pa.array([[[("k", 1)]], [], None], pa.list_(pa.map_(pa.string(), pa.int64()))),
    "map in an object": pa.array(
        [{"m": [("k", 1)]}, None, None], pa.struct([("m", pa.map_(pa.string(), pa.int64()))])
    ),
    "list": pa.array([[1], [2, 3], None]),
    "nothing": pa.nulls(3),
    "decimal": pa.array([1, 2, None], pa.decimal128(9, 2)),
    "duration": pa.array([1, 2, None], pa.duration("s")),
    "categories": pa.array(["u", "v", "u"]).dictionary_encode(),
    "time": pa.array([1, 2, None], pa.timestamp("ms", "UTC")),
    "half": pa.array(np.array([1, 2, 3], np.float16)),
    "fixed": pa.array([b"ab", b"cd", b"ef"], pa.binary(2)),
}


@pytest.mark.parametrize("column", UNKNOWN.values(), ids=UNKNOWN)
def test_a_column_that_nobody_uses_has_any_type(tmp_path: Path, column: pa.Array) -> None:
    data = read(save(tmp_path / "d.parquet", extra=column))
    assert list(data.inputs) == ["a", "b", "c"] and data.class_names == ("x", "y")


def test_a_column_of_an_unknown_type_that_is_used_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "d.parquet", extra=UNKNOWN["map"], many=UNKNOWN["list"])
    message = says(path, label="extra")
    assert "row 1 has a value of the type map<string, int64" in message and "data.label" in message
    assert "row 1 has a list for its text (column 'many')" in says(path, text="many")


def test_texts_and_labels_of_other_arrow_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array([b"caf\xc3\xa9", b"b", b"c"], pa.binary()),
            "label": pa.array(["x", "y", "x"]).dictionary_encode(),
            "home": pa.array(["h", "i", "j"], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "d.parquet")
    data = read(tmp_path / "d.parquet")
    assert list(data.inputs) == ["café", "b", "c"] and data.class_names == ("x", "y")
    assert data.columns["home"].tolist() == ["h", "i", "j"]
    pq.write_table(table.set_column(0, "text", pa.array([b"\xff\xfe", b"b", b"c"])), tmp_path / "e.parquet")
    assert "column 'text' holds bytes that are neither pictures nor text" in says(tmp_path / "e.parquet")


PICTURES = {
    "bytes": pa.array([png(1), png(2), png(3)]),
    "large bytes": pa.array([png(1), png(2), png(3)], pa.large_binary()),
    "the key bytes alone": pa.array([{"bytes": png(n)} for n in (1, 2, 3)]),
    "bytes and path": pa.array([{"bytes": png(n), "path": f"{n}.png"} for n in (1, 2, 3)]),
    "path and bytes": pa.array([{"path": None, "bytes": png(n)} for n in (1, 2, 3)]),
    "more keys": pa.array([{"bytes": png(n), "path": "x", "width": 8, "tags": ["a"]} for n in (1, 2, 3)]),
    "more keys, no path": pa.array([{"name": f"{n}.png", "bytes": png(n)} for n in (1, 2, 3)]),
}


@pytest.mark.parametrize("column", PICTURES.values(), ids=PICTURES)
def test_pictures_in_every_form(tmp_path: Path, column: pa.Array) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"picture": column, "label": ["x", "y", "x"]}), path)
    data = read(path)
    assert data.kind == "image" and [image.getpixel((0, 0)) for image in data.inputs] == [
        (1, 0, 0),
        (2, 0, 0),
        (3, 0, 0),
    ]
    assert len(set(data.check())) == 3
    whole = column.to_pylist()
    for gap in (None, dict.fromkeys(whole[1]) if isinstance(whole[1], dict) else None):
        broken = pa.array([whole[0], gap, whole[2]], column.type)
        pq.write_table(pa.table({"picture": broken, "label": ["x", "y", "x"]}), path)
        assert "row 2 has no image (column 'picture')" in says(path)


def test_a_picture_that_is_broken_or_not_fetched_is_named_by_its_row(tmp_path: Path) -> None:
    for content, reason in (
        (b"nothing", "cannot identify"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    ):
        column = pa.array([{"bytes": png(1)}, {"bytes": content}, {"bytes": png(3)}])
        path = tmp_path / "d.parquet"
        pq.write_table(pa.table({"picture": column, "label": ["x", "y", "x"]}), path)
        with pytest.raises(FedmsError, match=rf"row 2: cannot read the image: .*{reason}"):
            read(path).check()


def test_sixteen_bits_in_parquet_are_scaled(tmp_path: Path) -> None:
    held = io.BytesIO()
    Image.fromarray(np.full((8, 6), 32_896, np.uint16)).save(held, "PNG")
    for column in (pa.array([held.getvalue()] * 3), pa.array([{"bytes": held.getvalue(), "path": None}] * 3)):
        pq.write_table(pa.table({"picture": column, "label": ["x", "y", "x"]}), tmp_path / "d.parquet")
        assert read(tmp_path / "d.parquet").inputs[0].getpixel((0, 0)) == (128, 128, 128)


def test_a_declared_mode_is_kept(tmp_path: Path) -> None:
    import datasets

    held = {"picture": [Image.new("RGB", (8, 6), (200, 0, 0))] * 2, "label": ["x", "y"]}
    features = datasets.Features({"picture": datasets.Image(mode="L"), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(held, features=features).to_parquet(tmp_path / "d.parquet")
    red, green, blue = read(tmp_path / "d.parquet").inputs[0].getpixel((0, 0))
    assert red == green == blue


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases, which is not here")
def test_the_cases_of_parquet() -> None:
    assert len(read(CASES / "unused_map_column.parquet").inputs) == 120
    data = read(CASES / "image_raw_bytes.parquet")
    assert data.kind == "image" and len(data.inputs) == 30
    data.check()
