"""The client's side of an exchange: from a task's bytes to its update's bytes, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fedms.core.errors import StorageError
from fedms.engines.pipe import STACK, bundled, unbundled
from fedms.federation.client import ClientHost
from fedms.federation.messages import Failure, Update, decode_task, encode
from fedms.federation.together import handle_together

DISK = "disk"
"""Among the metrics of an update: the client failed because its state could not be written."""


def respond(host: ClientHost, message: bytes) -> bytes:
    """The answer to one task, or to several in a bundle."""
    return (
        bundled(handle_all(host, unbundled(message))) if message.startswith(STACK) else handle(host, message)
    )


def handle(host: ClientHost, message: bytes) -> bytes:
    """One task's bytes to its update's bytes; a client that fails answers with the reason."""
    task = decode_task(message)
    try:
        return encode(host.handle(task))
    except Exception as error:
        return encode(failed(task.client, error))


def handle_all(host: ClientHost, messages: Sequence[bytes]) -> list[bytes]:
    """As `handle`, for clients that train together."""
    tasks = [decode_task(message) for message in messages]
    outcomes = zip(tasks, handle_together(host, tasks), strict=True)
    return [
        encode(each if isinstance(each, Update) else failed(task.client, each)) for task, each in outcomes
    ]


def failed(client: str, error: Exception) -> Failure:
    """What a client answers that fails."""
    if isinstance(error, StorageError):
        raise error
    if os.environ.get("FEDMS_DEBUG"):
        raise error
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Failure(client, "error", f"{type(error).__name__}: {first}")
