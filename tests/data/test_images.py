"""Pictures: one way to decode them, whatever their mode and wherever they come from."""

import io
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.data.images import decode
from fedms.data.sources import load

RAMP = np.linspace(0, 1, 48).reshape(6, 8)


def saved(image: Image.Image, kind: str, **options: object) -> Image.Image:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return Image.open(io.BytesIO(held.getvalue()))


def ramp(most: int, dtype: type) -> np.ndarray:
    return np.rint(RAMP * most).astype(dtype)


def tiff(values: np.ndarray, **tags: int) -> Image.Image:
    """A TIFF with these tags changed after Pillow wrote it."""
    held = io.BytesIO()
    Image.fromarray(values).save(held, "TIFF")
    content = bytearray(held.getvalue())
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    start = int.from_bytes(content[4:8], order)
    numbers = {"photometric": 262}
    for entry in range(int.from_bytes(content[start : start + 2], order)):
        at = start + 2 + 12 * entry
        for name, value in tags.items():
            if int.from_bytes(content[at : at + 2], order) == numbers[name]:
                content[at + 8 : at + 10] = value.to_bytes(2, order)
    return Image.open(io.BytesIO(bytes(content)))


def twelve_bits() -> Image.Image:
    """A TIFF of 12 bits a pixel, two pixels in three bytes."""
    values = ramp(4_095, np.uint16).flatten()
    packed = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in values.astype(int).reshape(-1, 2))
    tags = {256: 8, 257: 6, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 6, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(packed))
    return Image.open(io.BytesIO(head + packed + struct.pack("<H", len(tags)) + entries + bytes(4)))


GREY = np.rint(RAMP * 255)
GREYS = {
    "8-bit PNG": saved(Image.fromarray(ramp(255, np.uint8)), "PNG"),
    "16-bit PNG": saved(Image.fromarray(ramp(65_535, np.uint16)), "PNG"),
    "16-bit TIFF": saved(Image.fromarray(ramp(65_535, np.uint16)), "TIFF"),
    "16-bit TIFF with 0 as white": tiff(ramp(65_535, np.uint16)[::-1, ::-1], photometric=0),
    "16-bit PGM": Image.open(io.BytesIO(b"P5 8 6 65535\n" + ramp(65_535, np.uint16).astype(">u2").tobytes())),
    "12-bit PGM": Image.open(io.BytesIO(b"P5 8 6 4095\n" + ramp(4_095, np.uint16).astype(">u2").tobytes())),
    "12-bit TIFF": twelve_bits(),
    "float TIFF": saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "16-bit in memory": Image.fromarray(ramp(65_535, np.uint16)),
    "16-bit big-endian in memory": Image.fromarray(ramp(65_535, np.uint16).astype(">u2")),
    "float in memory": Image.fromarray(RAMP.astype(np.float32)),
}


@pytest.mark.parametrize("image", GREYS.values(), ids=GREYS)
def test_every_depth_of_grey_is_the_same_ramp(image: Image.Image) -> None:
    found = decode(image, "x")
    assert found.mode == "RGB" and found.size == (8, 6)
    for channel in np.asarray(found, dtype=float).transpose(2, 0, 1):
        assert np.abs(channel - GREY).max() <= 1


COLOUR = Image.new("RGB", (8, 6), (200, 100, 50))
MODES = {
    "RGB": (COLOUR, (200, 100, 50)),
    "RGBA": (Image.new("RGBA", (8, 6), (200, 100, 50, 10)), (200, 100, 50)),
    "RGBX": (COLOUR.convert("RGBX"), (200, 100, 50)),
    "P": (COLOUR.quantize(4), (200, 100, 50)),
    "P with transparency": (saved(COLOUR.quantize(4), "PNG", transparency=0), (200, 100, 50)),
    "PA": (COLOUR.quantize(4).convert("PA"), (200, 100, 50)),
    "CMYK": (saved(COLOUR.convert("CMYK"), "JPEG", quality=100), (200, 100, 50)),
    "YCbCr": (COLOUR.convert("YCbCr"), (200, 100, 50)),
    "HSV": (COLOUR.convert("HSV"), (200, 100, 50)),
    "L": (Image.new("L", (8, 6), 77), (77, 77, 77)),
    "LA": (Image.new("LA", (8, 6), (77, 0)), (77, 77, 77)),
    "La": (Image.new("LA", (8, 6), (77, 255)).convert("La"), (77, 77, 77)),
    "1": (Image.new("1", (8, 6), 1), (255, 255, 255)),
}


@pytest.mark.parametrize(("image", "colour"), MODES.values(), ids=MODES)
def test_every_mode_keeps_its_colour(image: Image.Image, colour: tuple[int, ...]) -> None:
    found = decode(image, "x")
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found, dtype=int)[3, 3] - colour).max() <= 4


REFUSED = {
    "float of another range": (Image.fromarray(RAMP.astype(np.float32) * 3000), "pixels outside 0 to 1"),
    "negative float": (Image.fromarray(RAMP.astype(np.float32) - 0.1), "pixels outside 0 to 1"),
    "not a number": (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "pixels outside 0 to 1"),
    "32-bit integers": (Image.fromarray(ramp(65_535, np.int32)), "no fixed range: save it with 8 or 16 bits"),
    "32-bit TIFF": (saved(Image.fromarray(ramp(70_000, np.int32)), "TIFF"), "no fixed range"),
    "too many pixels": (Image.new("1", (11_000, 10_000)), "more than 100,000,000"),
}


@pytest.mark.parametrize(("image", "says"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_range_is_one_line(image: Image.Image, says: str) -> None:
    with pytest.raises(FedmsError, match=says) as caught:
        decode(image, "input 3")
    assert str(caught.value).startswith("input 3: cannot read the image: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_a_picture_is_turned_on_every_way_in(tmp_path: Path, kind: str, mode: str) -> None:
    if (kind, mode) == ("JPEG", "I;16"):
        pytest.skip("no such JPEG")
    values = np.zeros((40, 80), dtype=np.uint16 if mode == "I;16" else np.uint8)
    values[:, :40] = 65_535 if mode == "I;16" else 255  # bright on the left
    image = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is on the right
    path = tmp_path / f"x.{kind.lower()}"
    (image.convert("RGB") if mode == "RGB" else image).save(path, exif=exif)
    by_path = decode(path, "x")
    assert by_path.size == (40, 80) and by_path.getpixel((20, 10)) == (255, 255, 255)
    assert by_path.getpixel((20, 70)) == (0, 0, 0)
    with Image.open(path) as opened:
        assert decode(opened, "x").tobytes() == by_path.tobytes()
        assert decode(opened, "x").tobytes() == by_path.tobytes()  # what is given stays open
        if kind != "TIFF":  # Pillow drops a TIFF's tags in a copy
            assert decode(opened.copy(), "x").tobytes() == by_path.tobytes()
        turned = ImageOps.exif_transpose(opened)
    assert decode(turned, "x").tobytes() == by_path.tobytes()  # turned once, not twice


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("lenient", [False, True])
def test_a_truncated_picture_is_one_line_on_every_way_in(
    tmp_path: Path, kind: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # as another library may have set it
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"x.{kind.lower()}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    ways: list[Callable[[], Image.Image]] = [lambda: decode(path, "x"), lambda: decode(Image.open(path), "x")]
    for way in ways if kind != "WEBP" else ways[:1]:  # Pillow itself refuses to open half a WEBP
        with pytest.raises(FedmsError, match=r"^x: cannot read the image: [^\n]+$"):
            way()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_training_decodes_as_prediction_does(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(ramp(65_535, np.uint16) // (number + 1)).save(folder / f"{number}.png")
    data = load(DataConfig(source=str(tmp_path)), 0)
    for image, number in zip(data.inputs, (0, 2, 1, 3), strict=True):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        assert image.tobytes() == decode(path, "x").tobytes() == decode(Image.open(path), "x").tobytes()
        assert 0 < np.asarray(image).mean() < 200  # neither all white nor all black


def test_a_picture_that_git_lfs_did_not_fetch_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(FedmsError, match="a Git LFS pointer, not the file itself: run `git lfs pull`"):
        decode(path, str(path))


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    saved(COLOUR.quantize(4), "PNG").save(path, transparency=b"\0\1\2\3")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: decode(path, "x").tobytes(), range(200)))
    assert len(set(found)) == 1 and warnings.filters == before
