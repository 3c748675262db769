"""Flower's own processes: a SuperLink, a SuperNode. Started with what fedms needs, ended by their ids."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedms.core.errors import FedmsError

EXTRA = "the package flwr is not installed; install the extra: pip install 'fedms[flower]'"
EXTRA_PACKAGES = ("flwr", "google", "cryptography", "httpx", "uvicorn")
"""What the extra brings."""
PATIENCE = 10.0
"""Seconds that a process has to end by itself before it is killed."""
START_SECONDS = 60.0
"""Seconds that a SuperLink has to begin to listen."""
WITHOUT_TELEMETRY = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
DEATH_SIGNAL = 1
"""prctl's PR_SET_PDEATHSIG."""


@contextlib.contextmanager
def extra_needed() -> Iterator[None]:
    """Report a package of the extra that is missing as one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA_PACKAGES:
            raise
        raise FedmsError(EXTRA) from None


@dataclass(frozen=True)
class Tls:
    """How a SuperLink is known, and how it knows sites."""

    ca: Path
    """Certificate of the authority (PEM)"""
    certificate: Path
    key: Path


class Child:
    """A process in a session of its own. On Linux it ends with the thread that started it."""

    def __init__(self, name: str, command: Sequence[str | Path], home: Path, log: Path) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._output: IO[bytes] = log.open("ab")
        self._before = log.stat().st_size
        self.process = subprocess.Popen(
            [str(each) for each in command],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment(os.environ, home),
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )

    @property
    def ended(self) -> int | None:
        """The exit code, once it has ended."""
        return self.process.poll()

    def stop(self) -> None:
        """End it: by a request, or by a kill where it does not listen."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session, so its own children alone
        self.process.wait()
        self._output.close()

    def said(self) -> str:
        """What this process has written to its log."""
        return self.log.read_bytes()[self._before :].decode(errors="replace")

    def last_words(self) -> str:
        """The last line that says something."""
        lines = [line.strip() for line in self.said().splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent has ended, however that was."""
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


def environment(base: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment of Flower's processes: its programs on the path, no telemetry, a home of its own."""
    programs = str(Path(sys.executable).parent)
    return {
        **base,
        "PATH": f"{programs}{os.pathsep}{base.get('PATH', '')}",
        "FLWR_HOME": str(home),
        **WITHOUT_TELEMETRY,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def without_telemetry() -> None:
    """Have flwr send nothing from this process; for before it is imported."""
    os.environ.update(WITHOUT_TELEMETRY)


def superlink_command(
    host: str, port: int, database: Path, secret: Path | None, tls: Tls | None
) -> list[str | Path]:
    """The command of a SuperLink. With TLS it only lets registered sites in."""
    secured: list[str | Path] = ["--insecure"]
    if tls is not None:
        secured = ["--ssl-ca-certfile", tls.ca, "--ssl-certfile", tls.certificate, "--ssl-keyfile", tls.key]
        secured += ["--enable-supernode-auth"]
    kept: list[str | Path] = ["--superexec-auth-secret-file", secret] if secret else []
    place: list[str | Path] = ["--host", host, "--port", str(port), "--database", database]
    return [_program("flower-superlink"), "--isolation", "process", *place, *kept, *secured]


def supernode_command(
    superlink: str, port: int, secret: Path | None, ca: Path | None, key: Path | None
) -> list[str | Path]:
    """The command of a SuperNode whose executor is not its child."""
    secured: list[str | Path] = ["--root-certificates", ca] if ca else ["--insecure"]
    if key:
        secured += ["--auth-supernode-private-key", key]
    kept: list[str | Path] = ["--superexec-auth-secret-file", secret] if secret else []
    place = ["--superlink", superlink, "--host", "127.0.0.1", "--port", str(port)]
    return [_program("flower-supernode"), "--isolation", "process", *place, *kept, *secured]


def _program(name: str) -> Path:
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise FedmsError(EXTRA)
    return path


def wait_until_listening(child: Child, address: str, ca: Path | None) -> None:
    """Wait until a SuperLink answers.

    Raises:
        FedmsError: it ended, or does not answer in time.
    """
    context = ssl.create_default_context(cafile=str(ca)) if ca else None
    url, end = f"http{'s' if ca else ''}://{address}/health", time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if child.ended is not None:
            raise FedmsError(f"the SuperLink ended as it started: {child.last_words()}; see {child.log}")
        try:
            with urllib.request.urlopen(url, timeout=2, context=context):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise FedmsError(f"the SuperLink does not answer at {address}; see {child.log}")


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def is_loopback(address: str) -> bool:
    """Whether `host:port` is this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
