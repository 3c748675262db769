"""What an experiment costs as a federation of processes on this machine, beside the local engine.

    python bench/flower/deployment_cost.py             # 3 minutes on 2 cores
    python bench/flower/deployment_cost.py --write     # and write the table into docs/performance.md

It needs the extra fedms[flower]. Both run the same experiment, and the script refuses results that differ in
more than times and memory. Bytes on the wire are counted by a proxy between each site and the SuperLink.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from fedms.config import Config, load_config
from fedms.core.errors import FedmsError
from fedms.engines.base import Answer
from fedms.engines.flower.engine import FlowerEngine
from fedms.engines.flower.opening import open_post
from fedms.engines.flower.post import Letter
from fedms.engines.flower.sites import PAUSE
from fedms.engines.flower.wire import HELLO
from fedms.experiments import experiment
from fedms.experiments.deployment import Deployment
from fedms.federation.messages import Task
from fedms.runs.reading.run import read_rounds

sys.path.insert(0, str(Path(__file__).parents[1]))  # bench/, whose scripts share common/

from common.machine import with_machine
from common.measure import memory_of, memory_of_family
from common.pages import PERFORMANCE, markdown_table, splice

SITES, EMPTY = 3, 5
"""Sites, and exchanges in which they are asked for nothing."""
TIMES = ("seconds", "evaluation_seconds", "peak_memory_bytes")
"""Keys of result.json that no engine promises."""
BYTES = ("uplink_bytes", "downlink_bytes", "evaluation_bytes")
INTERVAL = 0.5
"""Seconds between looks at the memory."""
BLOCK = 2**16


class Wire:
    """Passes bytes between a site and the SuperLink, and counts them.

    Attributes:
        up, down: bytes from and to the site.
    """

    def __init__(self, superlink: str) -> None:
        self.up = self.down = 0
        host, _, port = superlink.rpartition(":")
        self._to = host, int(port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            here = self._door.accept()[0]
            with suppress(OSError):
                there = socket.create_connection(self._to)
                for one, other, way in ((here, there, "up"), (there, here, "down")):
                    threading.Thread(target=self._pass, args=(one, other, way), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := one.recv(BLOCK):
                setattr(self, way, getattr(self, way) + len(data))
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Watched(Deployment):
    """A federation whose wires and memory are watched.

    Attributes:
        wires: by site.
        peaks: bytes by process, with its children.
        alone: bytes by process, without them.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        super().__init__(config, folder)
        self.wires: dict[str, Wire] = {}
        self.peaks: dict[str, int] = {}
        self.alone: dict[str, int] = {}

    def start_site(self, name: str) -> None:
        superlink = self.address
        self.wires[name] = Wire(superlink)
        self.address = self.wires[name].address
        super().start_site(name)
        self.address = superlink

    def watch(self) -> None:
        """Look at the memory as long as this process lives."""
        while True:
            for name, child in [*self.children.items()]:
                pid = child.process.pid
                self.peaks[name] = max(self.peaks.get(name, 0), memory_of_family(pid))
                self.alone[name] = max(self.alone.get(name, 0), memory_of(pid))
            time.sleep(INTERVAL)


def timed_exchanges() -> tuple[list[float], list[int]]:
    """Seconds of every exchange with sites from now on, and the bytes of all their tasks and answers."""
    took, carried, carry = list[float](), [0, 0], FlowerEngine.run

    def run(self: FlowerEngine, tasks: Sequence[Task], *rest: Any) -> list[Answer]:
        began = time.perf_counter()
        answers = carry(self, tasks, *rest)
        took.append(time.perf_counter() - began)
        carried[:] = self.sent, self.received
        return answers

    FlowerEngine.run = run  # type: ignore[method-assign, assignment]
    return took, carried


def empty_exchanges(config: Config) -> list[float]:
    """Seconds of exchanges that ask sites for nothing but a hello."""
    took = []
    with closing(open_post(config)) as post:
        for _ in range(EMPTY):
            began = time.perf_counter()
            waiting = {*post.send([Letter(node, HELLO, b"", HELLO) for node in post.nodes()])}
            while waiting:
                waiting -= {back.letter for back in post.collect(waiting)}
                time.sleep(PAUSE)
            took.append(time.perf_counter() - began)
    return took


def seconds_of(stage: str, folder: Path) -> float:
    """Of the rounds of a stage in a run folder."""
    return sum(float(line["seconds"]) for line in read_rounds(folder) if line["stage"] == stage)


def measure(folder: Path) -> list[list[str]]:
    """The rows of the table.

    Raises:
        FedmsError: the results differ.
    """
    config = load_config(
        {
            "data": {"source": "assistant", "limit": 400},
            "partition": {"clients": SITES, "alpha": 0.5},
            "federation": {"rounds_global": 1, "rounds_local": 1},
            "lora": {"rank": 4},
            "engine": {"workers": 1},
        }
    )
    load = os.getloadavg()[0]
    local = experiment.run(config, folder / "local")
    took, carried = timed_exchanges()
    federation = Watched(config, folder / "deployed")
    threading.Thread(target=federation.watch, daemon=True).start()
    began = time.perf_counter()
    with federation.started() as reached:
        deployed = experiment.run(reached, federation.folder)
        down, up = (sum(getattr(each, way) for each in federation.wires.values()) for way in ("down", "up"))
        empty = empty_exchanges(reached)
    whole = time.perf_counter() - began - sum(empty)
    if differ := [key for key in local if key not in TIMES and local[key] != deployed[key]]:
        raise FedmsError(f"the results differ in {differ}")
    said = sum(deployed[key] for key in BYTES)
    sent, received = carried
    sites, alone = (
        max(peak for name, peak in peaks.items() if name != "superlink")
        for peaks in (federation.peaks, federation.alone)
    )
    return [
        ["the experiment on the local engine, s", f"{local['seconds']:.1f}"],
        [f"the same over {SITES} sites, s", f"{deployed['seconds']:.1f}"],
        ["with starting and ending all processes, s", f"{whole:.0f}"],
        ["exchanges", f"{len(took)}"],
        ["an exchange, median s", f"{statistics.median(took):.1f}"],
        ["an empty exchange, median s", f"{statistics.median(empty):.1f}"],
        ["a global round, s", f"{seconds_of('global', federation.folder):.1f}"],
        ["the same on the local engine, s", f"{seconds_of('global', folder / 'local'):.1f}"],
        ["bytes of tasks and answers, MB", f"{said / 1e6:.2f}"],
        ["bytes on the wire, MB", f"{(down + up) / 1e6:.2f}"],
        ["the wire to sites, times their tasks", f"{down / sent:.2f}"],
        ["the wire from sites, times their answers", f"{up / received:.2f}"],
        ["memory of the SuperLink, MB", f"{federation.peaks['superlink'] / 1e6:.0f}"],
        ["memory of a site with its SuperNode, MB", f"{sites / 1e6:.0f}"],
        ["memory of the site's own process, MB", f"{alone / 1e6:.0f}"],
        ["load of the machine before", f"{load:.1f}"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        table = markdown_table(["", "over Flower"], measure(Path(folder)))
    print(table)
    if write:
        splice(PERFORMANCE, "table deployment", with_machine(table))


if __name__ == "__main__":
    main()
