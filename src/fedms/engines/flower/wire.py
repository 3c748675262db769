"""What travels between server and site, as bytes: a hello and its answer, a request and its reply.

Tasks and answers travel inside as `federation.messages` encodes them. Nothing here knows flwr.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import yaml

from fedms.config import Config
from fedms.config.data import DataConfig
from fedms.core.errors import FedmsError
from fedms.core.paths import is_name
from fedms.engines.pipe import bundled, unbundled
from fedms.federation.client_folder import Version
from fedms.model.kernels import KERNELS, Kernel

HELLO, TASK = "hello", "task"
"""Kinds of messages."""
RUN_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Terms:
    """What a site must know of a run. It is told once, and keeps it."""

    run: str
    """The run's id: 32 hexadecimal digits"""
    config: str
    """The run's config as YAML, as `config_for_sites` tells it"""
    classes: tuple[str, ...]
    capacity: int
    rank: int
    model: Mapping[str, str]
    """The digests of `ModelIdentity`"""
    kernel: Kernel = "torch"
    """What computes the products of frozen layers"""
    methods: tuple[Mapping[str, Any], ...] = ()
    """Methods that are registered at the server, as plain values"""
    before: str | None = None
    """The id of the run from which this one goes on, for a site that took part in it"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "methods", tuple(self.methods))
        ids = (self.run, self.before or self.run)
        if not all(map(RUN_ID.fullmatch, ids)) or self.kernel not in KERNELS:
            raise ValueError("no run's id, or no kernel")

    @property
    def digest(self) -> str:
        """Of all of it."""
        return terms_digest(self.to_bytes())

    def to_bytes(self) -> bytes:
        """For a file."""
        return _json(asdict(self))

    @classmethod
    def of(cls, data: bytes) -> Terms:
        """What `to_bytes` wrote. Raises FedmsError if these are no terms."""
        terms: Terms = _read(cls, data)
        return terms


def terms_digest(data: bytes) -> str:
    """The digest of the terms that these bytes are."""
    return hashlib.sha256(data).hexdigest()


def config_for_sites(config: Config) -> str:
    """The config without the server's paths, and without what may change in a resumption."""
    left_out: dict[str, Any] = {
        **dict.fromkeys(("engine", "log", "compare", "device", "start_from", "join"), True),
        "data": {*DataConfig.model_fields} - {"template"},
        "cache": {"enabled", "memory_mb", "disk_mb"},
        "model": {"name", "adapter"},
        "evaluation": {"public"},
        "federation": {"quorum", "deadline_seconds", "attempts", "sites"},
    }
    return yaml.safe_dump(config.model_dump(mode="json", exclude=left_out), allow_unicode=True)


Kept = Mapping[str, Version]
"""The newest version of each kind of file of a client."""


@dataclass(frozen=True)
class KnownRun:
    """What a site has of a run."""

    terms: str
    """Their digest"""
    kept: Kept = field(default_factory=dict)

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> KnownRun:
        """Of values of JSON."""
        return cls(str(values["terms"]), versions(values["kept"]))


@dataclass(frozen=True)
class Hello:
    """What a site says of itself."""

    client: str
    version: str
    """Of its fedms"""
    classes: tuple[str, ...]
    """Those of its samples"""
    samples: int
    data: str
    """A digest of its samples and labels"""
    capacity: int | None = None
    runs: Mapping[str, KnownRun] = field(default_factory=dict)

    def kept(self, run: str) -> Kept:
        """What it holds of a run; nothing of one that it does not know."""
        return self.runs[run].kept if run in self.runs else {}

    def to_bytes(self) -> bytes:
        """For a message."""
        return _json(asdict(self))

    @classmethod
    def of(cls, data: bytes) -> Hello:
        """What `to_bytes` wrote.

        Raises:
            FedmsError: it is no hello.
        """
        hello: Hello = _read(cls, data)
        whole = type(hello.samples) is int and hello.samples > 0
        whole = whole and (hello.capacity is None or (type(hello.capacity) is int and hello.capacity > 0))
        texts = (hello.version, hello.data, *hello.classes)
        if not whole or not is_name(hello.client) or not all(isinstance(each, str) for each in texts):
            raise FedmsError("a site's hello is damaged")
        return hello

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        runs = {
            run: each if isinstance(each, KnownRun) else KnownRun.of_dict(each)
            for run, each in self.runs.items()
        }
        object.__setattr__(self, "runs", runs)


@dataclass(frozen=True)
class Request:
    """A task on its way to a site."""

    run: str
    number: int
    """Later requests of a run have larger numbers"""
    terms: str
    """The digest of the terms that the task stands on"""
    task: bytes
    told: Terms | None = None
    """The terms, for a site that does not know them"""

    def to_bytes(self) -> bytes:
        """For a message."""
        header = {"run": self.run, "number": self.number, "terms": self.terms}
        return bundled([_json(header), self.told.to_bytes() if self.told else b"", self.task])

    @classmethod
    def of(cls, data: bytes) -> Request:
        """What `to_bytes` wrote. Raises FedmsError if these bytes are no request."""
        header, told, task = _parts(data, 3)
        values = _values(header)
        try:
            run, number, terms = str(values["run"]), int(values["number"]), str(values["terms"])
        except (KeyError, TypeError, ValueError):
            raise FedmsError("a request is damaged") from None
        if not RUN_ID.fullmatch(run):
            raise FedmsError("a request is of no run")
        return cls(run, number, terms, task, Terms.of(told) if told else None)


@dataclass(frozen=True)
class Reply:
    """A site's answer on its way to the server."""

    answer: bytes
    kept: Kept = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    """Training and validation samples of each class that it holds; empty where it does not say"""

    def to_bytes(self) -> bytes:
        """For a message."""
        return bundled([_json({"kept": self.kept, "counts": self.counts}), self.answer])

    @classmethod
    def of(cls, data: bytes) -> Reply:
        """What `to_bytes` wrote. Raises FedmsError if these bytes are no reply."""
        header, answer = _parts(data, 2)
        values = _values(header)
        try:
            counts = {str(name): int(count) for name, count in values["counts"].items()}
            kept = versions(values["kept"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise FedmsError("a reply is damaged") from None
        if any(count < 0 for count in counts.values()):
            raise FedmsError("a reply counts fewer than no samples")
        return cls(answer, kept, counts)


def versions(values: Mapping[str, Any]) -> dict[str, Version]:
    """Versions by kind, of values of JSON. Raises TypeError or ValueError if they are none."""
    found = {}
    for kind, at in values.items():
        stage, number = at
        found[str(kind)] = (int(stage), int(number))
    return found


def _parts(data: bytes, count: int) -> list[bytes]:
    try:
        parts = unbundled(data)
    except (ValueError, OverflowError, MemoryError):
        parts = []
    if len(parts) != count:
        raise FedmsError("a message is damaged")
    return parts


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def _values(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise FedmsError("a message is damaged")
    return values


def _read(form: type[Any], data: bytes) -> Any:
    values = _values(data)
    try:
        return form(**{each.name: values[each.name] for each in fields(form)})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FedmsError(f"a message is no {form.__name__.lower()}") from None
