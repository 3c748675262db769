"""The way to the sites, as the engine sees it: who is there, letters out, replies back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Node:
    """A site's connection, as long as it lasts. One that comes back is another."""

    id: int
    since: str
    """When it came; of two with one id, the later one is the present one"""


@dataclass(frozen=True)
class Letter:
    """A message to a node."""

    node: Node
    kind: str
    data: bytes
    topic: str = ""
    """What it is about, for logs; it says nothing of any data"""


@dataclass(frozen=True)
class Return:
    """What came back for a letter: bytes, or the reason why none will."""

    letter: str
    data: bytes | None
    reason: str = ""
    gone: bool = False
    """Whether the site's process ended"""


class Post(Protocol):
    """Carries bytes to nodes and back."""

    def nodes(self) -> Mapping[Node, str]:
        """The nodes that are there, each with the name under which its key was registered; may be empty."""

    def send(self, letters: Sequence[Letter]) -> list[str]:
        """Send letters; the id of each."""

    def collect(self, letters: Collection[str]) -> list[Return]:
        """What has come back for some of these letters since the last call."""

    def close(self) -> None:
        """Send and collect no more."""
