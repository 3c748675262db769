"""A worker process of the local engine: config first, then tasks on standard input, updates on standard output."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import IO


def main() -> None:
    stdin = os.fdopen(os.dup(0), "rb")
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not land among the messages

    import torch
    import yaml

    from fedms.config import load_config
    from fedms.core.errors import FedmsError
    from fedms.engines.answers import respond
    from fedms.engines.autotune import measured
    from fedms.engines.memory import peak_memory
    from fedms.engines.pipe import MEASURE, USAGE, read_message, write_message
    from fedms.federation.client import ClientHost
    from fedms.federation.registration import receive
    from fedms.federation.world import open_world

    folder, number, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    prefixes = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    torch.set_num_threads(1)
    first, declared = read_message(stdin), read_message(stdin)
    if first is None or declared is None:
        return
    idle, messages = threading.Event(), SimpleQueue[bytes | None]()
    idle.set()
    threading.Thread(target=_listen, args=(stdin, messages, idle), daemon=True).start()
    try:
        receive(json.loads(declared))
        host = ClientHost(open_world(load_config(yaml.safe_load(first))), folder, number, workers, prefixes)
    except FedmsError as error:
        sys.exit(f"error: worker {number}: {error}")
    try:
        write_message(stdout, b"")  # it is there
        while (message := messages.get()) is not None:
            if message == USAGE:
                answer = str(peak_memory()).encode()
            elif message.startswith(MEASURE):
                answer = str(
                    measured(host.world, int(message[len(MEASURE) :]), folder / "cache" / str(number))
                ).encode()
            else:
                answer = respond(host, message)
            idle.set()
            write_message(stdout, answer)
    finally:
        host.close()


def _listen(stdin: IO[bytes], messages: SimpleQueue[bytes | None], idle: threading.Event) -> None:
    """Pass messages on. At the end of input while one is being worked on, the run has been killed: end at once, and write nothing
    more into a folder that a resumed run may hold by now."""
    from fedms.engines.pipe import read_message

    while (message := read_message(stdin)) is not None:
        idle.clear()
        messages.put(message)
    if not idle.is_set():
        os._exit(1)
    messages.put(None)


if __name__ == "__main__":
    main()
