"""A worker process of the local engine.

It is run as a file, and takes on its standard input: the parent's import path as a line of JSON, the config,
then tasks. Answers go to its standard output. Nothing of fedms is imported before the import path is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any


def main() -> None:
    end_with_parent(int(sys.argv[1]))
    stdin = os.fdopen(os.dup(0), "rb")
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # printed text must not mix with the messages
    inherited = json.loads(stdin.readline() or "{}")
    if not inherited:
        return
    sys.path[:] = inherited["path"]
    sys.meta_path.insert(0, HomeFinder(inherited["homes"]))
    serve(stdin, stdout, sys.argv[2:])


def end_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process when the parent has ended, whatever this process does then.

    The parent holds the other end of the pipe `lifeline` and never writes. However the parent ends, the
    kernel closes that end and signals this process. Only Linux does so; elsewhere `_listen` must be enough.
    """
    if sys.platform != "linux":
        return
    import fcntl

    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # the parent ended before that
        os._exit(1)


class HomeFinder:
    """Finds top-level modules in the folder where the parent found them; other modules are found as usual."""

    def __init__(self, homes: dict[str, str]) -> None:
        self._homes = homes

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        home = self._homes.get(name)
        return PathFinder.find_spec(name, [home], target) if path is None and home else None


def serve(stdin: IO[bytes], stdout: IO[bytes], places: list[str]) -> None:
    """Answer messages until the input ends."""
    import yaml

    from fedms.config import load_config
    from fedms.core.errors import FedmsError, StorageError
    from fedms.engines.autotune import measured
    from fedms.engines.host import respond
    from fedms.engines.memory import peak_memory
    from fedms.engines.pipe import MEASURE, STORAGE, USAGE, read_message, write_message
    from fedms.federation.client import ClientHost
    from fedms.federation.identity import DataIdentity
    from fedms.federation.registration import receive
    from fedms.federation.world import open_world

    import torch  # isort: skip # after fedms: only then are the same bits promised

    folder, number, workers = Path(places[0]), int(places[1]), int(places[2])
    prefixes = Path(places[3]) if len(places) > 3 else None
    torch.set_num_threads(1)
    first, declared = read_message(stdin), read_message(stdin)
    if first is None or declared is None:
        return
    idle, messages = threading.Event(), SimpleQueue[bytes | None]()
    idle.set()
    threading.Thread(target=_listen, args=(stdin, messages, idle), daemon=True).start()

    def answer(message: bytes) -> bytes:
        if message == USAGE:
            return str(peak_memory()).encode()
        if message.startswith(MEASURE):
            stack, scratch = int(message[len(MEASURE) :]), folder / "cache" / str(number)
            return str(measured(host.world, stack, scratch)).encode()
        try:
            return respond(host, message)
        except StorageError as error:
            return STORAGE + str(error).encode(errors="backslashreplace")

    try:
        plain = json.loads(declared)
        receive(plain)
        world = open_world(load_config(yaml.safe_load(first)))
        if change := DataIdentity.of_dict(plain["data"]).change(world.glance):
            raise FedmsError(f"data {world.config.data.source} changed since the run began: {change}")
        world.backbone.use(plain["kernel"])
        host = ClientHost(world, folder, number, workers, prefixes)
    except FedmsError as error:
        sys.exit(f"error: worker {number}: {error}")
    with contextlib.closing(host):
        write_message(stdout, b"")  # ready
        while (message := messages.get()) is not None:
            done = answer(message)
            idle.set()
            write_message(stdout, done)


def _listen(stdin: IO[bytes], messages: SimpleQueue[bytes | None], idle: threading.Event) -> None:
    """Pass messages on.

    Where the input ends while the worker is busy, the run was killed. Then end at once, and write nothing
    into a folder that a resumed run may hold by now.
    """
    from fedms.engines.pipe import read_message

    while (message := read_message(stdin)) is not None:
        idle.clear()
        messages.put(message)
    if not idle.is_set():
        os._exit(1)
    messages.put(None)


if __name__ == "__main__":
    main()
