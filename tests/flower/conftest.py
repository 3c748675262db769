"""Sites in this process: their files, and a post that carries letters to them and can be made to fail."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from engines.conftest import settings  # noqa: F401 - the same three clients
from fedms.config import Config
from fedms.config.site import SiteConfig, load_site
from fedms.data.public import public_digest
from fedms.engines.flower import opening
from fedms.engines.flower.post import Letter, Node, Return
from fedms.engines.flower.site import Site
from fedms.engines.flower.wire import HELLO
from fedms.experiments.description import write_partition
from fedms.experiments.site import keep_finished


class LocalPost:
    """Carries letters to sites in this process.

    Attributes:
        there: the nodes that are there, with their sites.
        mute: nodes that take letters and never answer.
        carried: every letter, in order.
    """

    def __init__(self) -> None:
        self.there: dict[Node, Site] = {}
        self.mute: set[Node] = set()
        self.carried: list[Letter] = []
        self.on_letter: Callable[[Letter], None] = lambda letter: None
        self._waiting: dict[str, Return] = {}
        self._ids = defaultdict[Node, int](int)
        self.closed = False

    def nodes(self) -> Mapping[Node, str]:
        return dict.fromkeys(self.there, "")

    def send(self, letters: Sequence[Letter]) -> list[str]:
        ids = []
        for letter in letters:
            ids.append(f"{len(self.carried)}")
            self.carried.append(letter)
            self.on_letter(letter)
            site = self.there.get(letter.node)
            if site is not None and letter.node not in self.mute:
                data = site.hello() if letter.kind == HELLO else site.answer(letter.data)
                self._waiting[ids[-1]] = Return(ids[-1], data)
        return ids

    def collect(self, letters: Collection[str]) -> list[Return]:
        return [self._waiting.pop(each) for each in letters if each in self._waiting]

    def put(self, letter: str, data: bytes) -> None:
        """Let this come back for a letter."""
        self._waiting[letter] = Return(letter, data)

    def close(self) -> None:
        self.closed = True


class Fleet:
    """Sites on their own files, and the config by which a server reaches them."""

    def __init__(self, config: Config, folder: Path, post: LocalPost) -> None:
        self.local, self.folder, self.post = config, folder, post
        write_partition(config, folder / "data")
        self.files = {path.name: path for path in sorted((folder / "data" / "sites").iterdir())}
        [public] = (folder / "data").glob("public.*")
        values = config.model_dump()
        values["engine"] |= {"name": "flower", "patience_seconds": 0.5}
        values["evaluation"] |= {"public": str(public), "public_sha256": public_digest(str(public))}
        values["data"] = {"source": "nothing that is opened"}
        self.values = values
        self.config = Config.model_validate(values)
        self._nodes = 0

    def site_config(self, name: str, **given: object) -> SiteConfig:
        model = self.local.model.name
        standard = {
            "name": name,
            "data": str(self.files[name]),
            "folder": str(self.folder / "sites" / name),
            "models": [model],
            "public": self.values["evaluation"]["public"],
            "share": ["counts", "hits", "test"],
        }
        return load_site(None, standard | given)

    def come(self, name: str, **given: object) -> Node:
        """A site comes, on a new node."""
        self._nodes += 1
        node = Node(self._nodes, "now")
        self.post.there[node] = Site(self.site_config(name, **given), version("fedms"), keep_finished)
        return node

    def all_come(self) -> dict[str, Node]:
        return {name: self.come(name) for name in self.files}

    def with_keys(self, *overrides: str) -> Config:
        from fedms.config import load_config

        return load_config(self.values, overrides)


@pytest.fixture
def fleet(settings, tmp_path, monkeypatch) -> Callable[..., Fleet]:  # noqa: F811
    """A fleet for the tiny config with these overrides; no site has come yet."""

    def make(*overrides: str) -> Fleet:
        post = LocalPost()
        monkeypatch.setattr(opening, "open_post", lambda config: post)
        return Fleet(settings(*overrides), tmp_path / "fleet", post)

    return make
