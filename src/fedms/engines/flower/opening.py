"""From a config to the sites: the server's side of a federation, and the engine that reaches it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedms.config import Config
from fedms.core.errors import ConfigError, FedmsError
from fedms.core.formatting import excerpt
from fedms.engines.flower.engine import FlowerEngine
from fedms.engines.flower.post import Post
from fedms.engines.flower.processes import extra_needed, without_telemetry
from fedms.engines.flower.sites import Sites
from fedms.engines.flower.wire import Hello
from fedms.federation.sites import Declared, ServerWorld
from fedms.federation.world import open_backbone


@dataclass(frozen=True)
class FoundWorld(ServerWorld):
    """A server's side whose sites have said hello."""

    sites: Sites | None = None


def find_sites(config: Config) -> FoundWorld:
    """Reach the SuperLink, and find the sites.

    Raises:
        FedmsError: flwr is not installed, the SuperLink cannot be reached, or too few sites came.
    """
    check_config(config)
    backbone = open_backbone(config)
    post = open_post(config)
    try:
        return federation_of(config, backbone, post)
    except BaseException:
        post.close()
        raise


def federation_of(config: Config, backbone: Any, post: Post) -> FoundWorld:
    """The federation of the sites that this post reaches.

    Raises:
        FedmsError: too few sites came, or they do not fit each other.
    """
    named, patience = config.federation.sites, config.engine.patience_seconds
    wanted = config.partition.clients
    if wanted is None:
        raise ConfigError("federation.sites: needed with engine.name: flower, or partition.clients")
    sites = Sites(post, named)
    if named and config.data.classes:
        sites.wait(named, patience)
        if not sites.homes:
            raise FedmsError(f"no site came within {patience:g} s{sites.troubles}")
    else:  # the names are not known, or not all classes, unless everybody is there
        sites.wait_for(wanted, patience)
    names = named or tuple(sorted(sites.homes))
    if len(names) != wanted:
        raise FedmsError(f"{len(names)} sites came, but partition.clients is {wanted}: {', '.join(names)}")
    declared = {name: Declared(hello.samples, hello.capacity) for name, hello in sites.hellos.items()}
    classes = agreed_classes(config.data.classes, sites.hellos)
    return FoundWorld(config, backbone, classes, tuple(names), declared, post.close, sites=sites)


def agreed_classes(named: tuple[str, ...], hellos: dict[str, Hello]) -> tuple[str, ...]:
    """All class names: those that the config names, or those of all sites, sorted.

    Raises:
        FedmsError: a site has a class that is not named, or there is one class alone.
    """
    for client, hello in sorted(hellos.items()):
        if named and (unknown := {*hello.classes}.difference(named)):
            raise FedmsError(f"site {client}: its class {excerpt(min(unknown))} is not among data.classes")
    found = named or tuple(sorted({name for hello in hellos.values() for name in hello.classes}))
    if len(found) < 2:
        raise FedmsError("all sites together have one class; at least 2 classes are needed")
    return found


def check_config(config: Config) -> None:
    """Raise ConfigError where the config asks for what sites cannot do."""
    if not config.deterministic and (config.engine.stack or 1) > 1:
        raise ConfigError("engine.stack: must be 1 with engine.name: flower, where each site is one client")


def open_post(config: Config) -> Post:
    """The way to the SuperLink that the config names.

    Raises:
        FedmsError: flwr is not installed, or the SuperLink cannot be reached.
    """
    without_telemetry()
    with extra_needed():
        from fedms.engines.flower.grid import GridPost
    return GridPost.open(config.engine)


def open_flower(world: FoundWorld, folder: Path, prefixes: Path | None = None) -> FlowerEngine:
    """The engine over the sites that were found. Sites have prefix stores of their own."""
    assert world.sites is not None
    return FlowerEngine(world, world.sites, folder)
