"""The section `engine` of a config: where clients run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedms.config.sections import Section


class EngineConfig(Section):
    """Where clients run, and how the run reaches them."""

    name: Literal["local", "flower"] = "local"
    """Where clients run: `local` is this machine, `flower` is sites over Flower's deployment engine
    (docs/deployment.md). Needs the extra `fedms[flower]`."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Number of worker processes with one torch thread each; 1 works in this process. Default: one per core,
    or with `deterministic: false` the fastest number in a measurement; 1 for a model of 0.5 billion
    parameters or more, since each worker holds a copy."""
    stack: int | None = Field(None, ge=1, le=1024)
    """Largest number of clients that one process trains together in a batch. Default: 1, or with
    `deterministic: false` the fastest number in a measurement."""
    kernels: Literal["auto", "torch", "onednn"] = "auto"
    """What computes the products of frozen layers on a CPU in float32: PyTorch's own choice (MKL on x86), or
    oneDNN. `auto` measures both once and takes oneDNN where it is much faster. The last bits differ, so a
    resumed run keeps the kernel that it began with. Sites take that of the server where they have it."""
    superlink: str = "127.0.0.1:8000"
    """Address of the SuperLink, for `flower`."""
    certificates: str | None = None
    """File of the certificate by which the SuperLink is known (PEM), for `flower`; default: no TLS, for a
    SuperLink on this machine."""
    secret: str | None = None
    """File of the secret that the SuperLink was started with (`--superexec-auth-secret-file`), for `flower`.
    """
    patience_seconds: float = Field(60.0, gt=0, lt=1e9)
    """How long a run waits for a site that is not there, for `flower`. A site that was missed once is not
    waited for again until it is back."""
