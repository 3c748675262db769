"""What a client reads: texts, and pictures decoded one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fedms.core.formatting import printable
from fedms.data.images import decode

Input = str | Path | Image.Image
"""A text; or an image, as a file or decoded."""


class Pictures(Sequence[Any]):
    """Images decoded when asked for, in RGB and upright, so that memory holds one batch of them."""

    def __init__(self, given: Sequence[Input], before: int = 0) -> None:
        self._given = given
        self._before = before

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, index: Any) -> Any:
        """One RGB image.

        Raises:
            FedmsError: the image cannot be decoded.
        """
        given = self._given[index]
        number = f"input {self._before + index + 1}"
        return decode(given, number if isinstance(given, Image.Image) else printable(str(given)))


def each_input(inputs: object) -> Iterator[Any]:
    """The inputs one by one.

    Raises:
        TypeError: one input, a table, or a value that cannot be iterated.
    """
    one = "inputs must be a list or another iterable; for one input write predict([x])"
    if isinstance(inputs, str | bytes | Path | Image.Image | Mapping):
        raise TypeError(one)
    if (dimensions := getattr(inputs, "ndim", 1)) != 1:
        raise TypeError(f"inputs must have 1 dimension, not {dimensions}; of a table, give one column")
    if not isinstance(inputs, Iterable):
        raise TypeError(f"{one}, not {type(inputs).__name__}")
    return iter(inputs)
