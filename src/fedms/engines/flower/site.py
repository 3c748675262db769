"""A site: one client with its own samples and its own folder. It runs installed code only.

What the server says is a run's config and a task. Of the config, a site takes over nothing that names a path,
a module or a hub name: data, model, cache and device are its own settings.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedms.config import Config, load_config
from fedms.config.privacy import PrivacyConfig
from fedms.config.site import SiteConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.files import make_folder, write_bytes
from fedms.data import sources
from fedms.data.sources import Dataset
from fedms.engines.flower.wire import RUN_ID, Hello, KnownRun, Reply, Request, Terms, terms_digest
from fedms.engines.host import respond
from fedms.engines.memory import keep_freed_memory
from fedms.federation.client import ClientHost
from fedms.federation.client_folder import ClientFolder
from fedms.federation.client_view import STATE
from fedms.federation.identity import DataIdentity, ModelIdentity
from fedms.federation.messages import Failure, FailureKind, Update, decode_answer, decode_task, encode
from fedms.federation.methods import METHODS
from fedms.federation.registration import receive
from fedms.federation.sites import Place, SiteWorld, open_site
from fedms.federation.world import open_backbone

log = logging.getLogger(__name__)

TERMS = "terms.json"
"""In a run's folder at the site."""
MOST_HOSTS = 2
"""Runs that a site holds open at a time."""
AT_HOME = "the reason is in the site's log"


@dataclass(frozen=True)
class Finished:
    """A run whose last task this site has answered."""

    folder: Path
    world: SiteWorld
    answer: Update


class Site:
    """One client.

    Attributes:
        name: of the client.
        own: its samples, with the class names that occur in them.
    """

    def __init__(
        self, settings: SiteConfig, version: str, finished: Callable[[Finished], None] = lambda run: None
    ) -> None:
        """Read the site's samples.

        Args:
            version: of fedms.
            finished: called when a run's test has been answered.

        Raises:
            FedmsError: they cannot be read.
        """
        self.settings, self.name = settings, settings.name
        self._version, self._finished = version, finished
        self.folder = Path(settings.folder).expanduser()
        make_folder(self.folder)
        self.folder.chmod(0o700)
        keep_freed_memory()
        self.own: Dataset = sources.load_client(settings.data, settings.name)
        identity = DataIdentity.of(self.own, self.own.check(), None)
        self._data = identity.fingerprint
        self._hosts: OrderedDict[str, ClientHost] = OrderedDict()
        self._newest: dict[str, int] = {}
        self._at_work = threading.Lock()

    def hello(self) -> bytes:
        """What the site says of itself."""
        known = {path.name: self._known(path) for path in self._runs()}
        names, samples = self.own.class_names, len(self.own.labels)
        capacity = self.settings.capacity
        return Hello(self.name, self._version, names, samples, self._data, capacity, known).to_bytes()

    def answer(self, data: bytes) -> bytes:
        """The reply to a request. Where the client fails, the server is told the kind; the text stays here.

        Raises:
            FedmsError: the bytes are no request.
        """
        request = Request.of(data)
        self._newest[request.run] = max(request.number, self._newest.get(request.run, 0))
        with self._at_work:
            if request.number < self._newest[request.run]:  # the server has asked for something else since
                return self._failure("deadline", "the server has asked anew").to_bytes()
            try:
                return self._done(request).to_bytes()
            except Exception as error:
                log.exception("a task failed")
                return self._failure("error", f"{type(error).__name__}; {AT_HOME}").to_bytes()

    def _failure(self, kind: FailureKind, reason: str) -> Reply:
        return Reply(encode(Failure(self.name, kind, reason)))

    def _done(self, request: Request) -> Reply:
        host, task = self._host(request), decode_task(request.task)
        if task.client != self.name:
            raise FedmsError(f"a task for {task.client!r:.80} came here")
        data = respond(host, request.task)
        answer, folder = decode_answer(data), self._run_folder(request.run)
        if isinstance(answer, Failure):
            log.error("the task %s of stage %s failed: %s", task.kind, task.stage, answer.reason)
            data = encode(Failure(self.name, answer.kind, f"{answer.reason.split(':')[0]}; {AT_HOME}"))
        elif task.kind == "test":
            assert isinstance(host.world, SiteWorld)
            self._finished(Finished(folder, host.world, answer))
        log.info(
            "%s %s %d: %d bytes in, %d out", task.stage, task.kind, task.round, len(request.task), len(data)
        )
        return Reply(data, self._kept(folder), self._counts(host))

    def _counts(self, host: ClientHost) -> Mapping[str, int]:
        if not self.settings.say_counts or host.recipe.private:
            return {}
        world, split = host.world, host.world.clients[self.name]
        rows = np.concatenate([split.train, split.validation])
        return Counter(world.class_names[label] for label in world.dataset.labels[rows])

    # runs

    def _run_folder(self, run: str) -> Path:
        return self.folder / "runs" / run

    def _runs(self) -> list[Path]:
        found = (self.folder / "runs").glob("*")
        return [path for path in found if RUN_ID.fullmatch(path.name) and (path / TERMS).exists()]

    def _known(self, folder: Path) -> KnownRun:
        return KnownRun(terms_digest((folder / TERMS).read_bytes()), self._kept(folder))

    def _kept(self, folder: Path) -> dict[str, tuple[int, int]]:
        return ClientFolder(folder / "clients" / self.name).newest()

    def _host(self, request: Request) -> ClientHost:
        """The run's open host, opened where it is not."""
        if request.told is not None:
            self._take(request)
        if request.run not in self._hosts:
            while len(self._hosts) >= MOST_HOSTS:
                self._hosts.popitem(last=False)[1].close()
            self._hosts[request.run] = self._opened(request)
        self._hosts.move_to_end(request.run)
        return self._hosts[request.run]

    def _take(self, request: Request) -> None:
        """Keep a run's terms, which never change."""
        assert request.told is not None
        path = self._run_folder(request.run) / TERMS
        if request.told.run != request.run or request.told.digest != request.terms:
            raise FedmsError("a request tells terms that are not its own")
        if path.exists() and path.read_bytes() != request.told.to_bytes():
            raise FedmsError("the server changed the terms of a run")
        make_folder(path.parent)
        write_bytes(path, request.told.to_bytes())

    def _opened(self, request: Request) -> ClientHost:
        folder = self._run_folder(request.run)
        if not (folder / TERMS).exists():
            raise FedmsError("a task came of a run that this site knows nothing of")
        terms = Terms.of((folder / TERMS).read_bytes())
        if terms.digest != request.terms:
            raise FedmsError("a task stands on other terms than this site was told")
        _take_methods(terms)
        model = ModelIdentity(**{str(key): str(value) for key, value in terms.model.items()})
        before = None if terms.before is None else self._run_folder(terms.before)
        if before is not None and STATE not in self._kept(before):
            raise FedmsError("what this site trained in the run before is gone")
        config, backbone = self._with_model(local_config(terms.config, self.settings, before), model)
        try:
            backbone.use(terms.kernel)
        except ConfigError as error:
            log.warning("the server's kernel is not here, so the last bits may differ: %s", error)
        capacity = min(terms.capacity, self.settings.capacity or terms.capacity)
        place = Place(self.name, terms.classes, capacity, terms.rank)
        world = open_site(config, place, self.own, backbone)
        return ClientHost(world, folder, prefixes=self.folder / "prefixes" / self._data[:16])

    def _with_model(self, config: Config, wanted: ModelIdentity) -> tuple[Config, Any]:
        """The config with the allowed model that is the server's, and its backbone."""
        for name in self.settings.models:
            local = config.model_copy(update={"model": config.model.model_copy(update={"name": name})})
            backbone = open_backbone(local)
            if ModelIdentity.of(backbone) == wanted:
                return local, backbone
        raise FedmsError("the server's model is none of those that this site allows (key `models`)")

    def close(self) -> None:
        """Let go of everything that is kept for speed alone."""
        while self._hosts:
            self._hosts.popitem()[1].close()


def _take_methods(terms: Terms) -> None:
    """Register the run's own methods, which are plain data.

    Raises:
        FedmsError: a method of the same name is another one here, which would train something else.
    """
    for declared in terms.methods:
        known = METHODS.get(str(declared.get("name")))
        if known is not None and json.loads(json.dumps(known.to_dict())) != declared:
            raise FedmsError(f"the run's method {known.name} is another one at this site")
    receive({"methods": terms.methods, "families": {}})


def local_config(text: str, settings: SiteConfig, before: Path | None = None) -> Config:
    """The run's config as this site takes it: without the server's paths, modules and hub names.

    Args:
        before: the folder, at this site, of the run from which this one goes on.

    Raises:
        FedmsError: it is no config, or promises less privacy than this site demands.
    """
    try:
        values = yaml.safe_load(text)
        plugins = [*(values.get("plugins") or [])]
        unknown = [name for name in plugins if name not in settings.plugins]
        judged, partition = dict(values["evaluation"]), dict(values["partition"])
        judged["public"] = settings.public if judged.get("public_sha256") else None
        partition |= {"rule": "files", "clients": None, "column": None}
        own = {
            "data": {**settings.data.model_dump(), "template": values["data"].get("template")},
            "cache": {**settings.cache.model_dump(), "dtype": values["cache"]["dtype"]},
            "device": settings.device,
            "start_from": None if before is None else str(before),
            "join": None,
            "evaluation": judged,
            "partition": partition,
            "federation": {**values["federation"], "sites": [], "quorum": 1},
            "model": {**values["model"], "name": settings.models[0], "adapter": None},
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError):
        raise FedmsError("the run's config cannot be read") from None
    if unknown:
        raise FedmsError(f"the run needs the plug-in {unknown[0]!r:.80}, which this site does not allow")
    for section in ("engine", "log", "compare"):
        values.pop(section, None)
    config = load_config({**values, **own})
    _check_budget(config.privacy, settings.epsilon)
    return config


def _check_budget(privacy: PrivacyConfig, most: float | None) -> None:
    """Raise FedmsError where the run promises less than this site demands."""
    if most is not None and not (privacy.protects and (privacy.epsilon or 0.0) <= most):
        raise FedmsError(f"this site demands differential privacy with privacy.epsilon {most:g} at most")
