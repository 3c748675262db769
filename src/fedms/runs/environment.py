"""The content of environment.json: versions, machine and commit of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from fedms.config import Config
from fedms.core.reproducibility import describe_reproducibility
from fedms.model.kernels import Kernel

PACKAGES = ("fedms", "torch", "transformers", "datasets", "safetensors", "numpy")


def describe_environment(config: Config, workers: int | None, kernel: Kernel | None = None) -> dict[str, Any]:
    """Versions, seed, threads, machine, device and git commit of a run.

    `workers` is None for a comparison in which each run chooses its own number, and `kernel` for every
    comparison.
    """
    import torch

    from fedms.training.device import resolved

    device = resolved(config.device)
    return {
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "seed": config.seed,
        "workers": workers,
        "threads_per_worker": 1,
        **({"kernels": kernel} if kernel else {}),
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        **describe_reproducibility(),
        "model_folder": _model_folder(config.model.name),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        **_sources(),
    }


def _model_folder(name: str) -> str | None:
    """Where the model lies, so that a relative name works from other folders, too."""
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - Path raises for an unknown user
    place = os.path.abspath(folder)  # noqa: PTH100 - a link keeps its name
    return place if name != "minilm" and folder.is_dir() else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sources() -> dict[str, Any]:
    """Commit of the package's work tree, and whether files differ from it; None without one."""
    # an installed copy may lie inside the work tree of another project
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"git_commit": None, "git_dirty": None}
    status = _git("status", "--porcelain")
    return {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": None if status is None else status != ""}


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
