"""A site's resident executor: it answers its own SuperNode's messages in this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from fedms.engines.flower.internal import SiteTask, SiteTasks
from fedms.engines.flower.site import Site

log = logging.getLogger(__name__)

PAUSE = 0.05
"""Seconds between two looks for a task."""
SETTLE = 0.2
"""Seconds after which a task's content is there; to ask too early costs flwr's back-off of 1 s."""


def work(site: Site, tasks: SiteTasks, go_on: Callable[[], bool]) -> None:
    """Answer messages as long as `go_on` says so.

    Each has a thread of its own, since the task of a run that has ended waits for its content for ever. The
    site itself does one at a time.
    """
    while go_on():
        task = tasks.next()
        if task is None:
            time.sleep(PAUSE)
        else:
            threading.Thread(target=_do, args=(site, task), daemon=True).start()


def _do(site: Site, task: SiteTask) -> None:
    try:
        time.sleep(SETTLE)
        kind, data = task.open()
        task.answer(site.hello() if kind.startswith("query") else site.answer(data))
    except Exception:  # one message cannot end the site
        log.exception("a message was not answered")
    finally:
        task.close()
