"""Who is where: every node is asked once which site it is, and what that site still holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from importlib.metadata import version

from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt, plural
from fedms.engines.flower.post import Letter, Node, Post
from fedms.engines.flower.wire import HELLO, Hello

log = logging.getLogger(__name__)

PAUSE = 0.1
"""Seconds between two looks for replies."""
BETWEEN_LOOKS = 1.0
"""Seconds between two looks for nodes that came or went."""


class Sites:
    """The sites that are there, by client name.

    Attributes:
        homes: each client's node.
        hellos: what each client's site said last.
        trouble: why a node that is there cannot take part, by its own name.
    """

    def __init__(self, post: Post, admitted: Collection[str] = ()) -> None:
        """Only sites of these names are admitted; of none: all."""
        self.post = post
        self.homes: dict[str, Node] = {}
        self.hellos: dict[str, Hello] = {}
        self.trouble: dict[str, str] = {}
        self._admitted = {*admitted}
        self._asked: dict[str, Node] = {}
        self._heard: dict[Node, str] = {}
        self._looked = 0.0

    def look(self, at_once: bool = False) -> None:
        """See who has come and gone, and ask those who came. Does not wait."""
        now = time.monotonic()
        if not at_once and now - self._looked < BETWEEN_LOOKS:
            return
        self._looked = now
        there = self.post.nodes()
        self.homes = {name: node for name, node in self.homes.items() if node in there}
        self._asked = {letter: node for letter, node in self._asked.items() if node in there}
        self._heard = {node: name for node, name in self._heard.items() if node in there}
        new = [node for node in there if node not in self._heard and node not in self._asked.values()]
        letters = [Letter(node, HELLO, b"", HELLO) for node in new]
        if letters:
            self._asked |= zip(self.post.send(letters), new, strict=True)
        for reply in self.post.collect(list(self._asked)) if self._asked else ():
            node = self._asked.pop(reply.letter)
            self._hear(node, there.get(node, ""), reply.data)

    def _hear(self, node: Node, registered: str, data: bytes | None) -> None:
        """Take in what a node answered to a hello. One that failed to is asked again."""
        if data is None:
            return
        try:
            hello = Hello.of(data)
        except FedmsError as error:
            self._heard[node] = ""
            log.warning("a node is left alone: %s", error)
            return
        name = self._heard[node] = hello.client
        if why := self._refusal(hello, registered):
            self.trouble[name] = why
            log.warning("site %s is left alone: it %s", name, why)
            return
        self.trouble.pop(name, None)
        self.homes[name], self.hellos[name] = node, hello

    def _refusal(self, hello: Hello, registered: str) -> str | None:
        if registered and registered != hello.client:
            return f"holds the key of {excerpt(registered)}"
        if self._admitted and hello.client not in self._admitted:
            return "is not one of federation.sites"
        if hello.version != version("fedms"):
            return f"has fedms {excerpt(hello.version)}, not {version('fedms')}"
        return None

    def wait(self, names: Iterable[str], seconds: float) -> None:
        """Wait until these sites are there, but no longer than this."""
        wanted = {*names}
        self._wait_until(lambda: wanted <= self.homes.keys(), seconds)

    def wait_for(self, count: int, seconds: float) -> None:
        """Wait until this many sites are there.

        Raises:
            FedmsError: there are fewer after that time.
        """
        self._wait_until(lambda: len(self.homes) >= count, seconds)
        if len(self.homes) < count:
            there = ", ".join(sorted(self.homes)) or "none"
            came = f"{len(self.homes)} of {plural(count, 'site')} came within {seconds:g} s"
            raise FedmsError(f"{came}: {there}{self.troubles}")

    def _wait_until(self, enough: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        self.look()
        while not enough() and time.monotonic() < end:
            time.sleep(PAUSE)
            self.look()

    @property
    def troubles(self) -> str:
        """Why sites that are there cannot take part, for a message."""
        return "".join(f"; site {name} {why}" for name, why in sorted(self.trouble.items()))
