"""All of flwr's internal names that fedms uses, in one place; `tests/flower` checks that they exist.

Server and sites are executors of their own: they ask the SuperLink or the SuperNode (both started with
`--isolation process`) for what is to be done, and do it in this process. So no process is started a message,
models stay loaded, and no code that was sent is ever run.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import NodeStatus, TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, constant
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt

RETRY_SECONDS = 20.0
"""How long a call is tried again where the other side does not answer, before it counts as gone."""
BEAT_SECONDS = 15.0
"""Between two signs of life of a task; flwr takes one for dead after 60 s."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
FIELD = "data"
"""The one field of every record: a message is bytes."""
APP = {
    "pyproject.toml": b"""[project]
name = "fedms-app"
version = "0.1.0"
description = "fedms, as it is installed at the server and at the sites"
license = "Apache-2.0"
dependencies = ["flwr>=1.42,<1.43"]

[tool.flwr.app]
publisher = "fedms"
fab-include = ["fedms_app.py"]

[tool.flwr.app.components]
serverapp = "fedms_app:server_app"
clientapp = "fedms_app:client_app"

[tool.flwr.app.config]
""",
    "fedms_app.py": b"from fedms.engines.flower.app import client_app, server_app\n",
}
"""The app that a run must name. fedms's own server and sites never open it; a stock SuperNode runs it."""


def _patient(seconds: float = RETRY_SECONDS) -> RetryInvoker:
    """Tries again while the other side does not answer. Unlike flwr's own it ends, and sends no signals."""

    def hopeless(error: Exception) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code not in (502, 503, 504)
        return "certificate" in str(error).lower()

    return RetryInvoker(
        wait_gen_factory=lambda: constant(1.0),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=seconds,
        should_giveup=hopeless,
    )


def _client(address: str, certificates: bytes | None, *interceptors: Any) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=certificates is None,
        root_certificates=certificates,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), *interceptors],
        retry_invoker=_patient(),
    )


def _acquiring(address: str, certificates: bytes | None, secret: bytes | None) -> RuntimeHttpClient:
    signed = (
        [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})] if secret else []
    )
    return _client(address, certificates, *signed)


def _acquire(client: RuntimeHttpClient, kind: str) -> str | None:
    """The token of a waiting task of this kind, which is then this process's."""
    got = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind], agentapp_fab_hashes=[]))
    return got.token if got.HasField("task") and got.token else None


class _Heart:
    """Signs of life of a task, from a thread."""

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client, self._over = client, threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Exception):  # what is gone shows where it is asked for
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            self._over.wait(BEAT_SECONDS)

    def stop(self) -> None:
        self._over.set()


@contextlib.contextmanager
def one_line(where: str) -> Iterator[None]:
    """An error of the connection as one line."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise FedmsError(f"{where}: refused ({error.response.status_code})") from None
    except httpx.TransportError as error:
        raise FedmsError(f"{where}: cannot be reached: {str(error) or type(error).__name__}") from None


def _control(address: str, certificates: bytes | None) -> ControlHttpClient:
    return ControlHttpClient.from_server_address(
        server_address=address,
        insecure=certificates is None,
        root_certificates=certificates,
        interceptors=[CliClientHttpInterceptor(), RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        retry_invoker=_patient(),
    )


Admission = Literal["registered", "known already", "let in no more"]


def set_nodes(address: str, certificates: bytes, keys: Mapping[str, bytes]) -> list[tuple[str, Admission]]:
    """Let the holders of these keys connect, each under its name, and nobody else. What became of each name.

    Args:
        keys: public keys (PEM) by name.

    Raises:
        FedmsError: the SuperLink cannot be reached, or a key was taken away before or bears another name.
    """
    client, where = _control(address, certificates), f"SuperLink {address}"
    done = list[tuple[str, Admission]]()
    try:
        with one_line(where):
            known = {node.public_key: node for node in client.ListNodes(ListNodesRequest()).nodes_info}
        for name, key in keys.items():
            node = known.pop(key, None)
            if node is None:
                with one_line(f"{where}: key of {name}"):
                    client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
                done.append((name, "registered"))
            elif node.status == NodeStatus.UNREGISTERED:
                raise FedmsError(f"the key of site {name} was taken away once, and needs a new one")
            elif node.name != name:
                raise FedmsError(f"the key of site {name} is that of {excerpt(node.name)}")
            else:
                done.append((name, "known already"))
        for node in known.values():
            if node.status != NodeStatus.UNREGISTERED:
                with one_line(where):
                    client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
                done.append((node.name, "let in no more"))
    finally:
        client.close()
    return done


class ServerTask:
    """A run at the SuperLink whose ServerApp is this process.

    Attributes:
        grid: Flower's `Grid`.
    """

    def __init__(self, grid: HttpGrid, context: Any) -> None:
        self.grid, self._context = grid, context
        self._heart = _Heart(grid._runtime_client)

    @classmethod
    def open(cls, address: str, certificates: bytes | None, secret: bytes | None) -> Self:
        """Begin a run, and be its ServerApp.

        Raises:
            FedmsError: the SuperLink cannot be reached or refuses, or another executor took the run.
        """
        where = f"SuperLink {address}"
        with one_line(where):
            _start_run(address, certificates)
            token = _token(address, certificates, secret)
            grid = HttpGrid(address, certificates is None, certificates, token=token)
            grid._retry_invoker = _patient()
            task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
            TaskIdentity.node_id = task.context.node_id
            grid.set_run(run_from_proto(task.run))
            return cls(grid, context_from_proto(task.context))

    def close(self) -> None:
        """End the run at the SuperLink."""
        self._heart.stop()
        self._context.state = RecordDict()
        done = PushTaskOutputRequest(
            context=context_to_proto(self._context), sub_status=SubStatus.COMPLETED, details=""
        )
        self.grid._retry_invoker.max_time = 1.0
        with contextlib.suppress(Exception):  # a SuperLink that is gone needs no word
            self.grid._runtime_client.PushTaskOutput(done)
        self.grid.close()


def _start_run(address: str, certificates: bytes | None) -> None:
    content, _ = build_fab_from_files(APP)
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    control = _control(address, certificates)
    try:
        if not control.StartRun(StartRunRequest(fab=fab_to_proto(fab))).HasField("run_id"):
            raise FedmsError(f"SuperLink {address}: did not begin a run")
    finally:
        control.close()


def _token(address: str, certificates: bytes | None, secret: bytes | None) -> str:
    """The token of the run that was just begun; of two that begin at once, either."""
    client, end = _acquiring(address, certificates, secret), time.monotonic() + RETRY_SECONDS
    try:
        while time.monotonic() < end:
            if token := _acquire(client, TaskType.SERVER_APP):
                return token
            time.sleep(0.1)
    finally:
        client.close()
    hint = "it must be started with --isolation process"
    raise FedmsError(f"SuperLink {address}: gave the run to another executor; {hint}")


class SiteTask:
    """One message to a site, which this process answers."""

    def __init__(self, address: str, token: str) -> None:
        self._client = _client(address, None, RuntimeTokenHttpInterceptor(token))
        self._heart = _Heart(self._client)
        self.message: Any = None

    def open(self) -> tuple[str, bytes]:
        """The message's type, and its bytes. May block for hours where the run has ended meanwhile."""
        self.message, self._context, _, _ = pull_task_input(self._client)
        return self.message.metadata.message_type, bytes(self.message.content["fedms"][FIELD])

    def answer(self, data: bytes) -> None:
        """Send the answer."""
        content = RecordDict({"fedms": ConfigRecord({FIELD: data})})
        push_message(self._client, Message(content, reply_to=self.message), self._context)
        push_task_output(self._client, self._context, SubStatus.COMPLETED, "")

    def close(self) -> None:
        """Give no more signs of life."""
        self._heart.stop()
        self._client.close()


class SiteTasks:
    """The tasks of the SuperNode at this address, on this machine."""

    def __init__(self, address: str, secret: bytes | None) -> None:
        self._address = address
        self._client = _acquiring(address, None, secret)
        self._client._retry_invoker = None  # the loop asks again by itself

    def next(self) -> SiteTask | None:
        """The next task; None where there is none, or no SuperNode."""
        try:
            token = _acquire(self._client, TaskType.CLIENT_APP)
        except httpx.TransportError:
            return None
        return SiteTask(self._address, token) if token else None

    def close(self) -> None:
        """Ask for no more."""
        self._client.close()
