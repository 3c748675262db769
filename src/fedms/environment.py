"""What a result was made with, so that a result file explains itself."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from fedms.config import Config

PACKAGES = ("fedms", "torch", "transformers", "datasets", "safetensors", "numpy")


def describe_environment(config: Config) -> dict[str, Any]:
    """Versions, seed, threads, device, git commit (of the installed source tree, where there is one)."""
    import torch

    return {
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "seed": config.seed,
        "threads_per_worker": 1,
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if config.device == "cuda" else "cpu",
        "git_commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
