"""The folder of a comparison: its lock, its config, and its finished runs."""

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
"""The comparison's config with every default filled in. This file marks the folder of a comparison."""

PREFIX_FOLDER = "prefixes"
"""Folder of kept outputs of the frozen blocks, which the runs share. It is removed at the end."""


@contextmanager
def claimed(out: Path, config: Config) -> Iterator[None]:
    """Create the folder, or resume in it, and lock it for this process.

    Raises:
        FedmsError: the folder holds other files or another comparison, or another process uses it.
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
        shutil.rmtree(out / PREFIX_FOLDER, ignore_errors=True)  # left by a comparison that was killed
        write_bytes(out / CONFIG_FILE, config.to_yaml().encode())
        try:
            yield
        finally:
            shutil.rmtree(out / PREFIX_FOLDER, ignore_errors=True)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether the folder holds this run, finished; False if it is missing or not finished.

    Raises:
        FedmsError: the folder holds something else, or a run with another config.
    """
    held = RunFolder(folder)
    held.admit(config, resume=True)
    return held.result() is not None
