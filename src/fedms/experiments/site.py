"""A site as a command: its SuperNode, its executor, and what it keeps of a finished run."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedms.config.site import SiteConfig
from fedms.core.errors import FedmsError
from fedms.core.files import locked, write_bytes, write_json
from fedms.engines.flower.processes import (
    Child,
    extra_needed,
    free_port,
    supernode_command,
    without_telemetry,
)
from fedms.engines.flower.site import Finished, Site
from fedms.federation.exchanges.testing import FinalTestAnswer
from fedms.federation.identity import Identity, ModelIdentity
from fedms.runs.environment import describe_environment
from fedms.runs.folder import IDENTITY
from fedms.runs.reading.run import CONFIG, ENVIRONMENT, METRICS, RESULT

log = logging.getLogger(__name__)

SECRET = "supernode.secret"
"""In the site's folder: what its SuperNode and its executor share, new at each start."""
REFUSED = "Exit Code: 305"
"""What a SuperNode says last whose key, or whose server's certificate, was not accepted."""
OTHER_AUTHORITY = "CERTIFICATE_VERIFY_FAILED"
SHORTEST = 5.0
"""Seconds between two starts of a SuperNode."""


def keep_finished(run: Finished) -> None:
    """Complete the run's folder at the site: config, environment, fingerprints and the site's own result."""
    world, config, folder = run.world, run.world.config, run.folder
    answer = FinalTestAnswer.of(run.answer)
    own, everyone = answer.judged["test_own"], answer.judged.get("test_everyone")
    figures = {
        "accuracy_local": own.accuracy,
        "accuracy_global": everyone.accuracy if everyone else None,
        "gate_global_share": own.global_share,
    }
    classes, counts = list(world.class_names), world.label_counts()
    result = {
        "method": config.method,
        "seed": config.seed,
        "clients": 1,
        **figures,
        "per_client": [{"name": answer.client, "samples": answer.samples, **figures}],
        "partition": {"classes": classes, "clients": [answer.client], "counts": counts},
    }
    write_bytes(folder / CONFIG, config.to_yaml().encode())
    write_json(folder / ENVIRONMENT, describe_environment(config, 1, world.backbone.kernel))
    write_json(folder / IDENTITY, Identity(world.glance, ModelIdentity.of(world.backbone)).to_dict())
    write_bytes(folder / METRICS, b"")
    write_json(folder / RESULT, result)


def run_site(settings: SiteConfig, superlink: str, ca: Path | None, key: Path | None) -> None:
    """Be a site until a signal asks to end: a SuperNode, and its executor in this process.

    A SuperNode that ends is started again, unless the server does not let it in.

    Raises:
        FedmsError: the samples cannot be read, flwr is not installed, or the server does not let the site in.
    """
    executor, internal = _executor()  # flwr is looked for before data and model are
    site = Site(settings, version("fedms"), keep_finished)
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    with locked(site.folder), contextlib.ExitStack() as opened:
        opened.callback(site.close)
        secret = os.urandom(32).hex().encode()
        place = site.folder / SECRET
        write_bytes(place, secret)
        port = free_port()
        tasks = internal.SiteTasks(f"127.0.0.1:{port}", secret)
        opened.callback(tasks.close)
        node = SuperNode(supernode_command(superlink, port, place, ca, key), site.folder)
        opened.callback(node.stop)
        log.info("site %s with %d samples, for %s", site.name, len(site.own.labels), superlink)
        executor.work(site, tasks, lambda: not stopped and node.stands())


def _executor() -> tuple[Any, Any]:
    """The modules that need flwr."""
    without_telemetry()
    with extra_needed():
        from fedms.engines.flower import executor, internal
    return executor, internal


class SuperNode:
    """A site's SuperNode, started again where it ends."""

    def __init__(self, command: Sequence[str | Path], folder: Path) -> None:
        self._command, self._folder = command, folder
        self._start()

    def _start(self) -> None:
        log_file = self._folder / "supernode.log"
        self._since = time.monotonic()
        self._child = Child("supernode", self._command, self._folder / "flower", log_file)

    def stands(self) -> bool:
        """True; a SuperNode that ended is started again.

        Raises:
            FedmsError: the server does not let it in.
        """
        code = self._child.ended
        if code is None:
            return True
        words, file = self._child.said(), self._child.log
        self._child.stop()
        if REFUSED in words:
            if OTHER_AUTHORITY in words:
                raise FedmsError(f"the server's certificate is not of the authority of --tls; see {file}")
            raise FedmsError(f"the server does not let this site in: it does not know its key; see {file}")
        log.warning("the SuperNode ended with code %d; it is started again", code)
        time.sleep(max(0.0, SHORTEST - (time.monotonic() - self._since)))
        self._start()
        return True

    def stop(self) -> None:
        """End it."""
        self._child.stop()
