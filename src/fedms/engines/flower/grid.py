"""The post over Flower's Grid."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from flwr.app import ConfigRecord, Message, RecordDict

from fedms.config.engine import EngineConfig
from fedms.core.errors import FedmsError
from fedms.engines.flower.internal import FIELD, ServerTask, one_line
from fedms.engines.flower.post import Letter, Node, Return
from fedms.engines.flower.wire import HELLO

TYPES = {HELLO: "query"}
"""Flower's types of messages by kind of letter; the others are of type `train`."""
GONE = (5, 8)
"""Flower's codes for a node, or its executor, that gave no sign of life for about a minute."""


class GridPost:
    """Carries letters over a Grid. The protocol is `post.Post`."""

    def __init__(self, grid: Any, where: str = "", task: ServerTask | None = None) -> None:
        self._grid, self._where, self._task = grid, where, task

    @classmethod
    def open(cls, config: EngineConfig) -> Self:
        """Begin a run at the SuperLink that the config names.

        Raises:
            FedmsError: a file cannot be read, or the SuperLink cannot be reached.
        """
        logging.getLogger("flwr").setLevel(logging.ERROR)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        certificates, secret = (_content(path) for path in (config.certificates, config.secret))
        task = ServerTask.open(config.superlink, certificates, secret)
        return cls(task.grid, f"SuperLink {config.superlink}", task)

    def nodes(self) -> Mapping[Node, str]:
        """The nodes that are there, each with the name of its key."""
        with one_line(self._where):
            return {Node(each.node_id, each.last_activated_at): each.name for each in self._grid.get_nodes()}

    def send(self, letters: Sequence[Letter]) -> list[str]:
        """Send letters; the id of each."""
        messages = [
            Message(
                RecordDict({"fedms": ConfigRecord({FIELD: each.data})}),
                each.node.id,
                TYPES.get(each.kind, "train"),
                group_id=each.topic,
            )
            for each in letters
        ]
        with one_line(self._where):
            ids = list(self._grid.push_messages(messages))
        if len(ids) < len(letters) or not all(ids):
            raise FedmsError(f"{self._where}: did not take a message")
        return [str(each) for each in ids]

    def collect(self, letters: Collection[str]) -> list[Return]:
        """What has come back for some of these letters since the last call."""
        with one_line(self._where):
            found = list(self._grid.pull_messages(list(letters)))
        return [_returned(each) for each in found]

    def close(self) -> None:
        """End the run at the SuperLink."""
        if self._task is not None:
            self._task.close()
            self._task = None


def _returned(message: Any) -> Return:
    letter = str(message.metadata.reply_to_message_id)
    if message.has_error():
        gone = message.error.code in GONE
        reason = (
            "its site gave no sign of life" if gone else f"Flower's error {message.error.code} at the site"
        )
        return Return(letter, None, reason, gone)
    try:
        return Return(letter, bytes(message.content["fedms"][FIELD]))
    except (KeyError, TypeError):
        return Return(letter, b"")  # which is no reply, and refused as such


def _content(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise FedmsError(f"{path}: cannot be read: {error.strerror}") from None
