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
from fedms.runs.folder import ANOTHER_FOLDER_HINT, KEYS_WITHOUT_EFFECT, RunFolder, difference, refuse_used

CONFIG_FILE = "comparison.yaml"
"""The comparison's config, every default filled in: what makes a folder a comparison's."""

PREFIX_FOLDER = "prefixes"
"""What the frozen blocks come to, shared by the runs while the comparison goes on."""


@contextmanager
def claimed(out: Path, config: Config) -> Iterator[None]:
    """The folder, made or gone on with, for this process alone.

    Raises:
        FedmsError: it holds something else, another comparison, or one that is going on now.
    """
    if out.is_dir():
        check_no_escape(out)
    if (out / CONFIG_FILE).exists():
        if differs := difference(
            out / CONFIG_FILE, config, KEYS_WITHOUT_EFFECT | {"seed": True, "method": True}
        ):
            raise FedmsError(
                f"{out}: holds a comparison with another config: {differs}; {ANOTHER_FOLDER_HINT}"
            )
    else:
        refuse_used(out)
    make_folder(out)
    with locked(out):
        sweep(out)
        shutil.rmtree(out / PREFIX_FOLDER, ignore_errors=True)  # of a comparison that was killed
        write_bytes(out / CONFIG_FILE, config.to_yaml().encode())
        try:
            yield
        finally:
            shutil.rmtree(out / PREFIX_FOLDER, ignore_errors=True)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether this run is there, whole; False where it is not, or was only begun.

    Raises:
        FedmsError: something else is in its place, or a run with another config.
    """
    held = RunFolder(folder)
    held.admit(config, resume=True)
    return held.result() is not None
