"""Flower's own apps, over its public API alone: the fallback where the resident executors cannot be used.

A stock SuperNode runs `client_app` in a new process for every message. Its `--node-config` names the site's
YAML file: `site="/srv/site.yaml"`.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedms.config.site import load_site
from fedms.core.errors import FedmsError
from fedms.engines.flower.site import Site


def _site(context: Any) -> Site:
    return Site(load_site(Path(str(context.node_config["site"])), {}), version("fedms"))


def hello(message: Any, context: Any) -> Any:
    """What the site says of itself."""
    return Message(RecordDict({"fedms": ConfigRecord({"data": _site(context).hello()})}), reply_to=message)


def task(message: Any, context: Any) -> Any:
    """The reply to a task."""
    data = _site(context).answer(bytes(message.content["fedms"]["data"]))
    return Message(RecordDict({"fedms": ConfigRecord({"data": data})}), reply_to=message)


def serve(grid: Any, context: Any) -> None:
    """The server is `fedms run`, which is its own executor."""
    raise FedmsError("start the SuperLink with --isolation process, and the run with: fedms run CONFIG")


client_app, server_app = ClientApp(), ServerApp()
client_app.query()(hello)
client_app.train()(task)
server_app.main()(serve)
