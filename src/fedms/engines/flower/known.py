"""What the server knows of sites from one exchange to the next, and after a resumption."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Self

from fedms.core.errors import FedmsError
from fedms.core.files import make_folder, read_json, write_json
from fedms.engines.flower.wire import RUN_ID, Kept, versions

SITES = Path("server") / "sites.json"
"""In the run folder: the run's id, and of each site the digest of its data and what it held last."""


class KnownSites:
    """The content of that file.

    Attributes:
        run: the run's id; the same after a resumption.
    """

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self.run = run
        self._data: dict[str, str] = {}
        self._kept: dict[str, Kept] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """What a run folder has, or the beginning of it.

        Raises:
            FedmsError: the file is damaged.
        """
        path = folder / SITES
        if path.exists():
            return cls.read(folder)
        made = cls(path, secrets.token_hex(16))
        make_folder(path.parent)
        made.save()
        return made

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What a run folder has.

        Raises:
            FedmsError: the file is missing or damaged.
        """
        path = folder / SITES
        try:
            values = read_json(path)
            found = cls(path, str(values["run"]))
            for name, site in values["sites"].items():
                found._data[name], found._kept[name] = str(site["data"]), versions(site["kept"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise FedmsError(f"{path}: damaged: it does not say what sites hold") from None
        if not RUN_ID.fullmatch(found.run):
            raise FedmsError(f"{path}: damaged: it names no run")
        return found

    def data(self, client: str, digest: str) -> str:
        """The digest of the site's data; this one, where none was known."""
        return self._data.setdefault(client, digest)

    def kept(self, client: str) -> Kept:
        """The newest versions that the site said it holds."""
        return self._kept.get(client, {})

    def keep(self, client: str, kept: Kept) -> None:
        """Note what the site holds now."""
        self._kept[client] = dict(kept)

    def save(self) -> None:
        """Write the file."""
        sites = {name: {"data": data, "kept": self.kept(name)} for name, data in self._data.items()}
        write_json(self._path, {"run": self.run, "sites": sites})
