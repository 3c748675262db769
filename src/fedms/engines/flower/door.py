"""The door for sites: of a SuperLink's three interfaces it passes on the one that sites need.

Whoever reaches the others can register keys, begin and stop runs and read logs, since Flower has no accounts
without its commercial edition. So the SuperLink listens on this machine alone, and the door is what others
reach. Both have the same certificate; a site's signature is checked by the SuperLink behind.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import httpx
import uvicorn

from fedms.core.errors import FedmsError
from fedms.engines.flower.processes import Tls

log = logging.getLogger(__name__)

OPEN = re.compile(rb"/v1/fleet/[a-z-]+")
"""Paths that pass: what a SuperNode asks for."""
NOT_PASSED = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer"),
    *(b"transfer-encoding", b"upgrade", b"host"),
}
"""Headers that are about one connection alone (RFC 9110, section 7.6.1)."""
MOST_CONNECTIONS = 1000
START_SECONDS, ANSWER_SECONDS = 30.0, 120.0

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class Passing:
    """The ASGI application: passes a request on, or answers 404."""

    def __init__(self, superlink: str, ca: str) -> None:
        self._superlink = f"https://{superlink}"
        self._context = ssl.create_default_context(cafile=ca)
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] != "POST" or not OPEN.fullmatch(scope["raw_path"]) or scope["query_string"]:
            await _answer(send, 404)
            return
        await self._pass(scope, receive, send)

    async def _pass(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if self._client is None:
            limits = httpx.Limits(max_connections=MOST_CONNECTIONS)
            self._client = httpx.AsyncClient(
                verify=self._context, timeout=ANSWER_SECONDS, limits=limits, trust_env=False
            )
        passed = [(name, value) for name, value in scope["headers"] if name not in NOT_PASSED]
        url = self._superlink + scope["raw_path"].decode()
        request = self._client.build_request("POST", url, headers=passed, content=_body(receive))
        try:
            answer = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            log.warning("the SuperLink does not answer: %s", type(error).__name__)
            await _answer(send, 502)
            return
        try:
            headers = [(name.lower(), value) for name, value in answer.headers.raw]
            kept = [(name, value) for name, value in headers if name not in NOT_PASSED]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":  # the site is gone
            raise httpx.ReadError("the body ended early")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Door:
    """The door, open in a thread."""

    def __init__(self, host: str, port: int, superlink: str, tls: Tls) -> None:
        """Open it.

        Raises:
            FedmsError: the address cannot be listened at.
        """
        self._server = uvicorn.Server(
            uvicorn.Config(
                Passing(superlink, str(tls.ca)),
                host=host,
                port=port,
                ssl_certfile=tls.certificate,
                ssl_keyfile=tls.key,
                limit_concurrency=MOST_CONNECTIONS,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        end = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise FedmsError(f"{host}:{port}: cannot be listened at")
            time.sleep(0.02)

    def _serve(self) -> None:
        try:
            asyncio.run(self._server.serve())
        except SystemExit:  # how uvicorn says that the port is taken
            log.debug("the door could not be opened")

    def close(self) -> None:
        """Close it. Connections that sites keep open end without a word in the log."""
        logging.getLogger("uvicorn.error").disabled = True
        self._server.should_exit = True
        self._thread.join(START_SECONDS)
