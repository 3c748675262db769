"""Pictures of any source: read from their place when they are asked for, upright and in 8-bit RGB.

`decode` is the one way from a picture to what a model's processor gets. Its rules:

- An orientation that the camera noted (EXIF) is applied.
- 16-bit greyscale is divided by its format's range: 65,535, or 4,095 in a 12-bit TIFF. A TIFF in which 0 is
  white is inverted.
- Float pixels must lie between 0 and 1, and are multiplied by 255.
- 32-bit integers have no fixed range: they are refused, except from PNG and PGM (65,535 is white).
- Palette, CMYK, YCbCr, HSV, 1-bit and greyscale pictures are converted by Pillow. Transparency is dropped.
- Of several pages or frames, the first counts (of a `PIL.Image`, the current one).
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from fedms.core.errors import FedmsError
from fedms.data.table import LFS_POINTER, check_no_pointer

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MOST_PIXELS = 100_000_000
"""Of one picture: a few bytes can claim any number of them, and each takes three bytes or more of memory."""
GLANCE = (64, 64)
"""Size to which a JPEG is decoded at least, where it is only checked."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""TIFF tags"""

Opener = Callable[[], Image.Image]
"""Opens one picture; its pixels need not be decoded yet."""
Place = tuple[Opener, int, str]
"""A picture's opener, its row from 0, and the table that has the row, for messages."""


class Images(Sequence[Any]):
    """Images read from their place each time they are asked for: memory holds none. Can be pickled."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """One RGB image, or the images of a slice.

        Raises:
            FedmsError: the image cannot be decoded.
        """
        if isinstance(index, slice):
            return Images(self._places[index])
        opener, row, where = self._places[index]
        return decode(opener, f"{where}: row {row + 1}")

    def __add__(self, other: Images) -> Images:
        """These pictures, then the others."""
        return Images([*self._places, *other._places])

    def select(self, positions: Iterable[int]) -> Images:
        """The pictures at these positions; the places of the others are not held."""
        return Images([self._places[position] for position in positions])

    def check(self) -> list[bytes]:
        """Decode each of them once, JPEGs at a reduced size.

        Returns:
            A digest of each picture's pixels: two copies of a file have the same.

        Raises:
            FedmsError: one cannot be decoded.
        """
        return [_digest(opener, f"{where}: row {row + 1}") for opener, row, where in self._places]

    def glance(self) -> list[bytes]:
        """What is known of each picture without reading it: the size and the time of change of its file.

        A picture that is stored in a table has the table's file; one from the hub has none.
        """
        seen = cache(_stamp)
        return [
            seen(opener.path if isinstance(opener, PictureFile) else Path(where))
            for opener, _, where in self._places
        ]


def decode(picture: Image.Image | str | Path | Opener, where: str) -> Image.Image:
    """One picture as a model's processor gets it: whole, upright, 8-bit RGB.

    Args:
        picture: decoded or opened by Pillow, a path, or an opener. A `PIL.Image` stays open.
        where: what the message calls it.

    Raises:
        FedmsError: it is no picture, truncated, too large, or of pixels without a fixed range.
    """
    with told(where):
        if isinstance(picture, Image.Image):
            return upright(picture)
        with open_file(picture) if isinstance(picture, str | Path) else picture() as opened:
            return upright(opened)


def open_file(path: str | Path) -> Image.Image:
    """The picture in a file; its pixels are not decoded yet."""
    check_no_pointer(Path(path))
    return Image.open(path)


@dataclass(frozen=True)
class PictureFile:
    """An opener of the picture in a file."""

    path: Path

    def __call__(self) -> Image.Image:
        return open_file(self.path)


def open_bytes(content: bytes) -> Image.Image:
    """The picture in the bytes of a file; its pixels are not decoded yet."""
    import io

    if content.startswith(LFS_POINTER):
        raise ValueError("a Git LFS pointer, not the picture itself")
    return Image.open(io.BytesIO(content))


def upright(image: Image.Image) -> Image.Image:
    """A new image in 8-bit RGB, turned as its camera was held.

    Raises:
        ValueError: it is too large, or its pixels have no fixed range.
        OSError: it is truncated or broken.
    """
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
    range_of = _range(image)
    _load(image)
    turned = ImageOps.exif_transpose(image)
    if range_of is not None:
        turned = _grey(turned, *range_of)
    elif turned.mode == "La":  # Pillow has no direct way to RGB
        turned = turned.convert("LA")
    return turned.convert("RGB")


def _load(image: Image.Image) -> None:
    """Decode the pixels. Pillow 13 maps a plain TIFF by its name, and scrambles one that must be turned."""
    name = getattr(image, "filename", "")
    if name and image.format == "TIFF":
        image.filename = ""  # type: ignore[attr-defined]
        try:
            image.load()
        finally:
            image.filename = name  # type: ignore[attr-defined]
    else:
        image.load()


def _range(image: Image.Image) -> tuple[float, bool] | None:
    """Which value is the brightest, and whether 0 is white; None where Pillow knows it: 8 bits or fewer."""
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    inverted = tags.get(PHOTOMETRIC) == 0
    if mode.startswith("I;16"):
        return 2 ** int(tags.get(BITS_PER_SAMPLE, (16,))[0]) - 1, inverted
    if mode == "F":
        return 1.0, inverted
    if mode == "I":
        if image.format not in ("PNG", "PPM"):
            raise ValueError("32-bit integer pixels have no fixed range: save it with 8 or 16 bits")
        return 65_535, False
    return None


def _grey(image: Image.Image, brightest: float, inverted: bool) -> Image.Image:
    """Greyscale of 8 bits: 0 stays 0, the brightest value becomes 255."""
    values = np.asarray(image).astype(np.float64)
    if not ((values >= 0) & (values <= brightest)).all():  # false for NaN, too
        raise ValueError(f"pixels outside 0 to {brightest:,g}: scale them to this range")
    scaled = np.floor(values / brightest * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(255 - scaled if inverted else scaled)


def _digest(opener: Opener, where: str) -> bytes:
    def glance() -> Image.Image:
        image = opener()
        image.draft("RGB", GLANCE)
        return image

    image = decode(glance, where)
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()


def _stamp(path: Path) -> bytes:
    """Size and time of change of a file; of nothing where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return b""
    return f"{status.st_size} {status.st_mtime_ns}".encode()


class _Strict:
    """While any thread is inside, warnings are ignored and truncated pictures are refused.

    Both are settings of the process: the first thread that enters changes them, the last restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._warnings = warnings.catch_warnings()
        self._truncated = False

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")
                self._truncated = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._warnings.__exit__(None, None, None)
                ImageFile.LOAD_TRUNCATED_IMAGES = self._truncated


_strict = _Strict()


@contextmanager
def told(where: str) -> Iterator[None]:
    """Whatever Pillow and its decoders say of a broken picture, as one line."""
    try:
        with _strict:
            yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise FedmsError(f"{where}: cannot read the image: {reason}") from None
