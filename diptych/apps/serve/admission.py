"""Admits requests to the application: checks their host and key, reads their bodies within limits, and times them out.

Bodies are read here in full, so that the application never parses a body that is too large or does not end.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.apps.serve.batching import Batcher, ExpectedRequest
from diptych.apps.serve.errors import ApiError, failed
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.metrics import OTHER, Metrics

log = logging.getLogger("diptych.apps.serve")
MODEL_PREFIX = "/v1/"
PUBLIC = frozenset({"/healthz", "/", "/openapi.json"})
"""Paths that need no key: their contents reveal nothing about the served models."""
SECURITY_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)
CLIENT_CLOSED_REQUEST = 499
"""The status that metrics count when a client leaves before its answer, as in nginx."""


class ClientLeft(Exception):
    """Says that the client has closed its connection."""


class Exchange:
    """One HTTP request with the channels to its client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.headers = Headers(scope=scope)
        self.path: str = scope["path"]
        self.for_model = scope["method"] == "POST" and self.path.startswith(MODEL_PREFIX)
        self.body_bytes = 0
        self.read_to_end = not ("transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0")


class AdmissionMiddleware:
    """Wraps an ASGI application and admits requests to it."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        batcher: Batcher,
        endpoints: Collection[str],
        key: str | None = None,
        hosts: Collection[str] | None = None,
    ) -> None:
        """`endpoints` are the existing paths. `hosts` are the accepted Host headers in lower case; None accepts any."""
        self.app, self.limits, self.metrics, self.batcher = app, limits, metrics, batcher
        self.endpoints = {*endpoints, *PUBLIC}
        self.hosts = hosts
        self._key = None if key is None else _digest(key.encode())
        self.stopping = False
        self.in_flight = 0
        """Number of open requests to models."""
        self._held_bytes = 0
        """Bytes of the bodies of those requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, self._counting(scope, send))
        try:
            await self._admit(exchange)
        except ApiError as error:
            await self._refuse(exchange, error)
        except ClientLeft:
            if not scope.get("diptych.status"):
                self.metrics.requests.labels(self._endpoint(exchange.path), str(CLIENT_CLOSED_REQUEST)).inc()
        except Exception as error:
            if not scope.get("diptych.status"):
                await self._refuse(exchange, failed(error))

    # ------------------------------------------------------------------ admission

    async def _admit(self, exchange: Exchange) -> None:
        self._check_head(exchange)
        if not exchange.for_model:
            return await self._forward(exchange, await self._read_body(exchange), None)
        if self.in_flight >= self.limits.queue:
            raise self._busy(f"{self.in_flight} requests are in progress")
        self._count_in_flight(+1)
        expected = None
        try:
            body = await self._read_body(exchange)
            expected = ExpectedRequest(self.batcher)
            await self._forward(exchange, body, expected)
        finally:
            if expected is not None:
                expected.arrived()
            self._hold(exchange, -exchange.body_bytes)
            self._count_in_flight(-1)
        return None

    def _check_head(self, exchange: Exchange) -> None:
        """Checks host, key and content type. Raises ApiError."""
        if self.hosts is not None and _host(exchange.headers.get("host", "")) not in self.hosts:
            raise ApiError("wrong_host", "this server answers to its own names only; --allow-host adds one")
        if self._key is not None and exchange.path not in PUBLIC and not self._has_key(exchange.headers):
            message = "this server requires a key: send the header Authorization: Bearer KEY"
            raise ApiError("no_key", message, {"WWW-Authenticate": "Bearer"})
        if not exchange.for_model or exchange.path not in self.endpoints:
            return
        if self.stopping:
            raise ApiError("stopping", "the server is being stopped and accepts no new requests", {"Retry-After": "5"})
        if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError("not_json", "send JSON, with the header Content-Type: application/json")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        assert self._key is not None
        # Digests have equal lengths and are compared in constant time, so that the time reveals nothing about the key.
        return hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._key) and scheme.lower() == "bearer"

    async def _read_body(self, exchange: Exchange) -> bytes:
        """Reads the whole body.

        Raises ApiError for a body that is too large or too slow, and ClientLeft if the client leaves.
        """
        length = exchange.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while not exchange.read_to_end:
                    chunk = await _next_chunk(exchange)
                    if len(body) + len(chunk) > self.limits.body_bytes:
                        raise self._too_large()
                    if exchange.for_model:
                        if self._held_bytes + len(chunk) > self.limits.held_bytes:
                            raise self._busy("the bodies of open requests fill the server's memory for them")
                        self._hold(exchange, len(chunk))
                    body += chunk
        except TimeoutError:
            raise ApiError("slow_body", f"the body took longer than {self.limits.body_seconds:g} s") from None
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(
            "body_too_large", f"the body is too large: at most {self.limits.body_bytes:,} bytes are allowed"
        )

    def _busy(self, reason: str) -> ApiError:
        seconds = self.batcher.retry_after()
        return ApiError("busy", f"{reason}: retry in {seconds} s", {"Retry-After": str(seconds)})

    def _hold(self, exchange: Exchange, change: int) -> None:
        exchange.body_bytes += change
        self._held_bytes += change
        self.metrics.held_bytes.set(self._held_bytes)

    def _count_in_flight(self, change: int) -> None:
        self.in_flight += change
        self.metrics.open.set(self.in_flight)

    # ------------------------------------------------------------------ answers

    async def _forward(self, exchange: Exchange, body: bytes, expected: ExpectedRequest | None) -> None:
        """Runs the application, and cancels it if the client leaves first or the time is over."""
        scope = {**exchange.scope, "state": {**exchange.scope.get("state", {}), "expected": expected}}
        answer = asyncio.ensure_future(self.app(scope, _replay(body), exchange.send))
        disconnect = asyncio.ensure_future(_until_disconnect(exchange.receive))
        try:
            limit = self.limits.seconds
            await asyncio.wait({answer, disconnect}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if disconnect.done():
                raise ClientLeft
            raise ApiError("timed_out", f"the answer was not ready within {limit:g} s")
        finally:
            for task in (answer, disconnect):
                task.cancel()
            await asyncio.gather(answer, disconnect, return_exceptions=True)

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        """Answers with an error. If an answer has already begun, the connection ends instead."""
        if exchange.scope.get("diptych.status"):
            return
        response = error.response()
        if not exchange.read_to_end and not await self._discard_body(exchange):
            response.headers["Connection"] = "close"
        await response(exchange.scope, exchange.receive, exchange.send)

    async def _discard_body(self, exchange: Exchange) -> bool:
        """Reads the rest of a refused body within limits, because a client that still sends does not read the answer.

        Returns whether the body ended. A client that sent the header Expect has not begun to send its body.
        """
        if "expect" in exchange.headers:
            return False
        read = 0
        with suppress(TimeoutError, ClientLeft):
            async with asyncio.timeout(self.limits.body_seconds / 4):
                while not exchange.read_to_end and read <= self.limits.body_bytes:
                    read += len(await _next_chunk(exchange))
        return exchange.read_to_end

    # ------------------------------------------------------------------ metrics

    def _counting(self, scope: Scope, send: Send) -> Send:
        """Wraps `send` so that it counts and times the response and adds the security headers."""
        start = time.monotonic()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["diptych.status"] = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *SECURITY_HEADERS]}
                endpoint = self._endpoint(scope["path"])
                self.metrics.requests.labels(endpoint, str(message["status"])).inc()
                self.metrics.seconds.labels(endpoint).observe(time.monotonic() - start)
            await send(message)

        return counting

    def _endpoint(self, path: str) -> str:
        return path if path in self.endpoints else OTHER


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host(header: str) -> str:
    """Returns the name in a Host header without its port.

    >>> _host("LocalHost:8080"), _host("[::1]:80"), _host("127.0.0.1")
    ('localhost', '[::1]', '127.0.0.1')
    """
    name, _, port = header.rpartition(":")
    return (name if name and port.isdecimal() else header).lower()


async def _next_chunk(exchange: Exchange) -> bytes:
    """Receives the next chunk of the body. Raises ClientLeft."""
    message = await exchange.receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    exchange.read_to_end = not message.get("more_body", False)
    chunk: bytes = message.get("body", b"")
    return chunk


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replay(body: bytes) -> Receive:
    """Returns a channel from which the application receives a body that was read already."""
    messages: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            message: Message = messages.pop()
            return message
        await asyncio.Event().wait()  # the middleware itself watches for a disconnect
        raise AssertionError

    return receive
