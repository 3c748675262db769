"""Pictures of any source: read from their place when they are asked for, upright and in RGB."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageOps

from fedms.core.errors import FedmsError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MOST_PIXELS = 100_000_000
"""Of one picture: a few bytes can claim any number of them, and each takes three bytes or more of memory."""
GLANCE = (64, 64)
"""A JPEG is decoded no larger than about this where nobody looks at it."""

Opener = Callable[[], Image.Image]
"""Opens one picture; its pixels need not be decoded yet."""
Place = tuple[Opener, int, str]
"""A picture's opener, its row from 0, and the table that has the row, for messages."""


class Images(Sequence[Any]):
    """Images read from their place each time they are asked for, so memory holds none of them. Can be pickled."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """One RGB image, or a list of them for a slice.

        Raises:
            FedmsError: the image cannot be decoded.
        """
        if isinstance(index, slice):
            return Images(self._places[index])
        read, row, where = self._places[index]
        with told(f"{where}: row {row + 1}"):
            return upright(read())

    def select(self, positions: Iterable[int]) -> Images:
        """The pictures at these positions; the places of the others are not held."""
        return Images([self._places[position] for position in positions])

    def check(self) -> None:
        """Decode each of them once.

        Raises:
            FedmsError: one cannot be decoded.
        """
        for read, row, where in self._places:
            with told(f"{where}: row {row + 1}"):
                image = read()
                image.draft("RGB", GLANCE)
                upright(image)


def upright(image: Image.Image) -> Image.Image:
    """Decoded, in RGB, as its camera was held."""
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
        return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def told(where: str) -> Iterator[None]:
    """Whatever Pillow and its decoders say of a broken picture, as one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise FedmsError(f"{where}: cannot read the image: {reason}") from None
