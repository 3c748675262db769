"""The pipe between the engine and a worker process: messages, each after its length."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO

USAGE = b"usage"
"""Asks a worker for its peak memory, in bytes."""
MEASURE = b"measure"
"""Before a number of clients, in decimal digits: asks a worker how long it takes to train them together.
The answer is in milliseconds a sample."""
STACK = b"stack"
"""Before a bundle of tasks that are to be done together. The answer is a bundle of as many answers."""
STORAGE = b"storage"
"""Before the reason why this machine's disk failed, in place of an answer. No answer of a client begins so:
an answer begins with the length of its header."""


def read_message(stream: IO[bytes]) -> bytes | None:
    """One length-prefixed message; None at the end."""
    prefix = stream.read(8)
    if len(prefix) < 8:
        return None
    size = int.from_bytes(prefix, "little")
    data = stream.read(size)
    return data if len(data) == size else None


def write_message(stream: IO[bytes], data: bytes) -> None:
    """Write one length-prefixed message."""
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def bundled(messages: Sequence[bytes]) -> bytes:
    """Several messages as one."""
    stream = io.BytesIO()
    stream.write(STACK)
    for message in messages:
        write_message(stream, message)
    return stream.getvalue()


def unbundled(bundle: bytes) -> list[bytes]:
    """The messages of a bundle."""
    stream = io.BytesIO(bundle[len(STACK) :])
    return list(iter(lambda: read_message(stream), None))
