"""A comparison's folder: whose it is, and which runs are in it already."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedms.config import Config
from fedms.core.errors import FedmsError
from fedms.core.files import locked, make_folder, sweep, write_bytes
from fedms.core.paths import check_no_escape
from fedms.runs.folder import ELSEWHERE, HOW, RunFolder, difference, refuse_used

DECLARED = "comparison.yaml"
"""The comparison's config, every default filled in: what makes a folder a comparison's."""

PREFIXES = "prefixes"
"""What the frozen blocks come to, shared by the runs while the comparison goes on."""


@contextmanager
def claimed(out: Path, config: Config) -> Iterator[None]:
    """The folder, made or gone on with, for this process alone.

    Raises:
        FedmsError: it holds something else, another comparison, or one that is going on now.
    """
    if out.is_dir():
        check_no_escape(out)
    if (out / DECLARED).exists():
        if differs := difference(out / DECLARED, config, HOW | {"seed": True, "method": True}):
            raise FedmsError(f"{out}: holds a comparison with another config: {differs}; {ELSEWHERE}")
    else:
        refuse_used(out)
    make_folder(out)
    with locked(out):
        sweep(out)
        shutil.rmtree(out / PREFIXES, ignore_errors=True)  # of a comparison that was killed
        write_bytes(out / DECLARED, config.to_yaml().encode())
        try:
            yield
        finally:
            shutil.rmtree(out / PREFIXES, ignore_errors=True)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether this run is there, whole; False where it is not, or was only begun.

    Raises:
        FedmsError: something else is in its place, or a run with another config.
    """
    held = RunFolder(folder)
    held.admit(config, resume=True)
    return held.result() is not None
