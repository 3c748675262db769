"""Clients that fail as they are told, in this process or in workers: a file of rules says who, in what task,
and how.

In workers it is loaded by the `sitecustomize` that the fixture `misbehave` writes, and puts itself around the
client's side when that is imported.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

RULES = "FEDMS_TEST_RULES"
"""Names the file."""
LONG = 3600.0
"""Seconds for which a client hangs."""


@dataclass(frozen=True)
class Rule:
    """What a client does instead of its task, or before it; None is any."""

    how: str
    """`raise`, `die`, `hang`, `late` (hangs for `seconds`, then answers), `leave` (the process ends as if it
    were done) or `lie`."""
    client: str | None = None
    kind: str | None = None
    stage: str | None = None
    round: int | None = None
    times: int | None = None
    """Only so often, over all processes."""
    seconds: float = LONG
    drawn: tuple[float, float] = (0.0, 1.0)
    """Only in this part of all (client, stage, round), which lie between 0 and 1 by chance."""

    def meets(self, task: Any) -> bool:
        here = all(
            getattr(self, key) in (None, getattr(task, key)) for key in ("client", "kind", "stage", "round")
        )
        drawn = (
            int(hashlib.sha256(f"{task.client} {task.stage} {task.round}".encode()).hexdigest()[:8], 16)
            / 2**32
        )
        here = here and self.drawn[0] <= drawn < self.drawn[1]
        return here and (self.times is None or self._count(task) <= self.times)

    def _count(self, task: Any) -> int:
        """How often the rule has been met, this time included: a byte each in a file beside the rules."""
        path = Path(f"{os.environ[RULES]}.{task.client}-{task.kind}-{task.stage}-{task.round}")
        with path.open("ab") as file:
            file.write(b".")
        return path.stat().st_size

    def do(self) -> None:
        if self.how == "raise":
            raise RuntimeError("as it was told")
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "leave":
            os._exit(0)
        if self.how in ("hang", "late"):
            time.sleep(self.seconds)


def around(host: Any) -> None:
    """Have a ClientHost fail as the rules say when it receives a task, alone or with others, and lie when it
    has handled one.
    """
    good, receive = host.handle, host.receive

    def rules(lies: bool) -> list[Rule]:
        told = [Rule(**values) for values in json.loads(Path(os.environ[RULES]).read_text())]
        return [rule for rule in told if (rule.how == "lie") == lies]

    def failing(self: Any, task: Any) -> None:
        for rule in rules(lies=False):
            if rule.meets(task):
                rule.do()
        receive(self, task)

    def handle(self: Any, task: Any) -> Any:
        update = good(self, task)
        return replace(update, weight=-1.0) if any(rule.meets(task) for rule in rules(lies=True)) else update

    host.handle, host.receive = handle, failing


class When(importlib.abc.MetaPathFinder):
    """Acts when the client's side has been imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "fedms.federation.client":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec and spec.loader
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            around(module.ClientHost)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch_imports() -> None:
    sys.meta_path.insert(0, When())
