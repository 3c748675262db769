"""The client's side of an exchange: a task's bytes to its answer's bytes, also where the client fails."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fedms.core.errors import StorageError
from fedms.engines.pipe import STACK, bundled, unbundled
from fedms.federation.client import ClientHost
from fedms.federation.messages import Failure, Update, decode_task, encode
from fedms.federation.together import handle_together


def respond(host: ClientHost, message: bytes) -> bytes:
    """The answer to one task, or the bundle of answers to a bundle of tasks.

    A client that fails answers with a `Failure`.

    Raises:
        StorageError: this machine's disk failed. It is not the client's fault, so it is no answer.
    """
    if message.startswith(STACK):
        return bundled(handle_all(host, unbundled(message)))
    return handle(host, message)


def handle(host: ClientHost, message: bytes) -> bytes:
    """As `respond`, for one task."""
    task = decode_task(message)
    try:
        return encode(host.handle(task))
    except Exception as error:
        return encode(_failure(task.client, error))


def handle_all(host: ClientHost, messages: Sequence[bytes]) -> list[bytes]:
    """As `handle`, for clients that train together."""
    tasks = [decode_task(message) for message in messages]
    outcomes = zip(tasks, handle_together(host, tasks), strict=True)
    return [
        encode(each if isinstance(each, Update) else _failure(task.client, each)) for task, each in outcomes
    ]


def _failure(client: str, error: Exception) -> Failure:
    """The answer of a client that raised this error. A `StorageError` is raised again."""
    if isinstance(error, StorageError) or os.environ.get("FEDMS_DEBUG"):
        raise error
    name = type(error).__name__
    first_line = (str(error).strip() or name).splitlines()[0]
    return Failure(client, "error", f"{name}: {first_line}")
