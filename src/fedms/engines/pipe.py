"""What goes through the pipe to a worker process and back: messages, each after its length."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO

USAGE = b"usage"
"""Asks a worker for its peak memory in bytes."""
MEASURE = b"measure"
"""Asks a worker how long local training takes with so many clients together, in decimal digits; the answer is in ms a sample."""
STACK = b"stack"
"""Before several tasks, one message after another, that are to be done together; the answer is as many updates."""


def read_message(stream: IO[bytes]) -> bytes | None:
    """One length-prefixed message; None at the end."""
    prefix = stream.read(8)
    if len(prefix) < 8:
        return None
    size = int.from_bytes(prefix, "little")
    data = stream.read(size)
    return data if len(data) == size else None


def write_message(stream: IO[bytes], data: bytes) -> None:
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
    stream = io.BytesIO(bundle[len(STACK) :])
    return list(iter(lambda: read_message(stream), None))
