"""A whole federation of sites on this machine, and the server's part of a real one."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.core.files import make_folder, read_json, write_bytes
from fedms.data.public import with_public_digest
from fedms.engines.flower.keys import admit_sites
from fedms.engines.flower.processes import (
    Child,
    Tls,
    free_port,
    superlink_command,
    wait_until_listening,
)
from fedms.experiments import description, experiment
from fedms.experiments.observers import Observer
from fedms.runs.report.run.page import write_report

SECRET = "secret"
"""File of the secret that executors share with the SuperLink of their machine."""
PAUSE = 0.2
"""Seconds between two looks at processes."""
PATIENCE = 300.0
"""Seconds at least that a run waits for sites that all begin to load torch on this machine at once."""


class Deployment:
    """A federation on this machine: a SuperLink, a process and a SuperNode of each site, and the run here.

    Attributes:
        folder: the run folder.
        place: beside it, what the sites have: `data/NAME`, `folders/NAME` and logs.
        children: all processes by name, while it runs.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.place = folder.with_name(f"{folder.name}-sites")
        self.children: dict[str, Child] = {}
        self.address = ""

    def run(self, observer: Observer, resume: bool = False) -> dict[str, Any]:
        """The content of the run's result.json.

        Raises:
            FedmsError: data, model or folder cannot be used, or a process does not start.
        """
        with self.started(resume) as config:
            result = experiment.run(config, self.folder, observer, resume=resume)
        write_report(self.folder)
        return result

    @contextlib.contextmanager
    def started(self, resume: bool = False) -> Iterator[Config]:
        """Have all processes run; the server's config meanwhile."""
        names = self._write_files(resume)
        secret = _secret(self.place)
        try:
            self.start_superlink(secret)
            for name in names:
                self.start_site(name)
            yield self._server_config(names, secret)
        finally:
            self.stop()

    def _write_files(self, resume: bool) -> list[str]:
        data = self.place / "data"
        if not (resume and data.exists()):
            if self.place.exists():
                raise FedmsError(f"{self.place}: already there; go on with --resume, or name another --out")
            make_folder(self.place)
            self.place.chmod(0o700)
            description.write_partition(self.config, data)
        return sorted(path.name for path in (data / "sites").iterdir())

    @property
    def _public(self) -> Path:
        return next((self.place / "data").glob("public.*"))

    def _server_config(self, names: Sequence[str], secret: Path) -> Config:
        values = self.config.model_dump()
        patience = max(self.config.engine.patience_seconds, PATIENCE)
        values["engine"] |= {"name": "flower", "superlink": self.address, "secret": str(secret)}
        values["engine"]["patience_seconds"] = patience
        values["federation"] |= {"sites": tuple(names)}
        values["partition"] |= {"clients": len(names)}
        values["data"] |= {"classes": tuple(read_json(self.place / "data" / "classes.json"))}
        values["evaluation"] |= {"public": str(self._public), "everyone": None}
        return with_public_digest(Config.model_validate(values))

    def start_superlink(self, secret: Path, port: int | None = None) -> None:
        """Start the SuperLink, on the database that is there."""
        self.address = f"127.0.0.1:{port or free_port()}"
        host, _, number = self.address.rpartition(":")
        command = superlink_command(host, int(number), self.place / "superlink.db", secret, None)
        self._start("superlink", command)
        wait_until_listening(self.children["superlink"], self.address, None)

    def start_site(self, name: str) -> None:
        """Start a site's process, which starts its SuperNode."""
        fedms = [sys.executable, "-m", "fedms.cli"]
        settings = self.write_settings(name)
        self._start(name, [*fedms, "site", "--settings", settings, "--superlink", self.address])

    def write_settings(self, name: str) -> Path:
        """Write a site's own YAML file."""
        settings = self.place / "settings" / f"{name}.yaml"
        make_folder(settings.parent)
        values = {
            "name": name,
            "folder": str(self.place / "folders" / name),
            "data": {"source": str(self.place / "data" / "sites" / name)},
            "public": str(self._public),
            "models": [self.config.model.name],
            "plugins": list(self.config.plugins),
            "device": self.config.device,
            "cache": self.config.cache.model_dump(),
        }
        write_bytes(settings, yaml.safe_dump(values).encode())
        return settings

    def _start(self, name: str, command: Sequence[str | Path]) -> None:
        self.children[name] = Child(name, command, self.place / "flower", self.place / "logs" / f"{name}.log")

    def stop(self) -> None:
        """End all processes, sites before the SuperLink."""
        for name in sorted(self.children, key=lambda name: name == "superlink"):
            self.children.pop(name).stop()


def _secret(folder: Path) -> Path:
    path = folder / SECRET
    if not path.exists():
        write_bytes(path, os.urandom(32).hex().encode())
        path.chmod(0o600)
    return path


def serve(folder: Path, keys: Path | None, port: int, door: str | None, say: Callable[[str], None]) -> None:
    """Run a SuperLink until a signal asks to end.

    Raises:
        FedmsError: as `serving`, or it ended.
    """
    with serving(folder, keys, port, door, say) as child:
        _wait(child)


@contextlib.contextmanager
def serving(
    folder: Path, keys: Path | None, port: int, door: str | None, say: Callable[[str], None]
) -> Iterator[Child]:
    """Have a SuperLink run on this machine, with the sites registered whose keys are there.

    Args:
        folder: of its database and log.
        keys: what `fedms keys` wrote; None for a federation on this machine alone.
        door: `HOST:PORT` at which sites of other machines reach it; needs keys.

    Raises:
        FedmsError: flwr is not installed, an address is taken, or a key cannot be read.
    """
    make_folder(folder)
    folder.chmod(0o700)
    secret, tls, address = _secret(folder), None, f"127.0.0.1:{port}"
    if keys is not None:
        tls = Tls(keys / "ca.pem", keys / "server.pem", keys / "server.key")
        for path in (tls.ca, tls.certificate, tls.key):
            if not path.is_file():
                raise FedmsError(f"{path}: no such file; `fedms keys` makes it")
    command = superlink_command("127.0.0.1", port, folder / "superlink.db", secret, tls)
    child = Child("superlink", command, folder / "flower", folder / "superlink.log")
    with contextlib.ExitStack() as opened:
        opened.callback(child.stop)
        wait_until_listening(child, address, tls.ca if tls else None)
        if keys is not None and tls is not None:
            admit_sites(address, keys, say)
            if door is not None:
                from fedms.engines.flower.door import Door

                host, _, number = door.rpartition(":")
                opened.callback(Door(host, int(number), address, tls).close)
                say(f"sites reach it at {door}")
        say(f"SuperLink at {address}; log {child.log}")
        given = ["engine.name=flower", f"engine.superlink={address}", f"engine.secret={secret}"]
        given += [f"engine.certificates={keys / 'ca.pem'}"] if keys else []
        say(f"run with: fedms run CONFIG {' '.join(f'--set {each}' for each in given)}")
        yield child


def _wait(child: Child) -> None:
    """Wait until a signal asks to end.

    Raises:
        FedmsError: the process ended by itself.
    """
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.append(True))
    while not asked:
        if child.ended is not None:
            raise FedmsError(
                f"the SuperLink ended with code {child.ended}: {child.last_words()}; see {child.log}"
            )
        time.sleep(PAUSE)


def real_commands(file: Path, config: Config, overrides: Sequence[str], names: Sequence[str]) -> list[str]:
    """The commands of the same federation on real machines.

    Args:
        file: of the config.
        overrides: what was given beside it, as KEY=VALUE.
        names: of the sites.
    """
    keys = ["engine.name=flower", f"engine.secret=superlink/{SECRET}", "engine.certificates=keys/ca.pem"]
    keys += [f"federation.sites=[{','.join(names)}]", f"partition.clients={len(names)}", *overrides]
    run = shlex.join(["fedms", "run", str(file), *(part for key in keys for part in ("--set", key))])
    model = "" if config.model.name == "minilm" else f" --model {shlex.quote(config.model.name)}"
    return [
        "on real machines, with SERVER for the server's name (docs/deployment.md):",
        f"  server     fedms keys --folder keys --server SERVER --sites {','.join(names)}",
        "  server     fedms serve --folder superlink --keys keys --door 0.0.0.0:8443",
        f"  server     {run}",
        *(
            f"  {name:<10} fedms site --name {name} --data FILE --folder {name} --superlink SERVER:8443 "
            f"--tls ca.pem --key {name}.key{model}"
            for name in names
        ),
    ]
