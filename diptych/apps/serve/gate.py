"""What every request passes before the application sees it: who may come in, how much of it is read, how long it takes.

Bodies are read here, in full and within limits, so that nothing is parsed that is too large or never ends.
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

from diptych.apps.serve.batching import Batcher, Coming
from diptych.apps.serve.errors import ApiError, failed
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.measures import OTHER, Measures

log = logging.getLogger("diptych.apps.serve")
WORK = "/v1/"
OPEN = frozenset({"/healthz", "/", "/openapi.json"})
"""Paths that need no key: what they say is the same for everybody."""
PROTECTED = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)
GONE = 499
"""The status that is counted where the client did not wait for one."""


class Gone(Exception):
    """The client has left."""


class Visit:
    """One request on its way through the gate."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.headers = Headers(scope=scope)
        self.path: str = scope["path"]
        self.is_work = scope["method"] == "POST" and self.path.startswith(WORK)
        self.held = 0
        self.read_to_end = not ("transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0")

    async def send(self, message: Message) -> None:
        await self._send(message)


class Gate:
    """An ASGI application around another."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        measures: Measures,
        batcher: Batcher,
        endpoints: Collection[str],
        key: str | None = None,
        hosts: Collection[str] | None = None,
    ) -> None:
        """`endpoints`: paths that exist. `hosts`: names that a Host header may give, in lower case; None: any."""
        self.app, self.limits, self.measures, self.batcher = app, limits, measures, batcher
        self.endpoints = {*endpoints, *OPEN}
        self.hosts = hosts
        self._key = None if key is None else _digest(key.encode())
        self.stopping = False
        self.working = 0
        """Requests in the server that ask a model."""
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        visit = Visit(scope, receive, self._counted(scope, send))
        try:
            await self._admit(visit)
        except ApiError as refused:
            await self._refuse(visit, refused)
        except Gone:
            self._count(visit, GONE)
        except Exception as error:
            if not scope.get("diptych.status"):
                await self._refuse(visit, failed(error))

    # ------------------------------------------------------------------ coming in

    async def _admit(self, visit: Visit) -> None:
        self._check(visit)
        if not visit.is_work:
            return await self._through(visit, await self._read(visit), None)
        if self.working >= self.limits.queue:
            raise self._busy(f"{self.working} requests are in work")
        self._set_working(+1)
        coming = None
        try:
            body = await self._read(visit)
            coming = Coming(self.batcher)
            await self._through(visit, body, coming)
        finally:
            if coming is not None:
                coming.over()
            self._hold(visit, -visit.held)
            self._set_working(-1)
        return None

    def _check(self, visit: Visit) -> None:
        """By the head alone. Raises ApiError."""
        if self.hosts is not None and _host(visit.headers.get("host", "")) not in self.hosts:
            raise ApiError("wrong_host", "this server answers to its own names only: see --allow-host")
        if self._key is not None and visit.path not in OPEN and not self._has_key(visit.headers):
            message = "this server wants its key: send the header Authorization: Bearer KEY"
            raise ApiError("no_key", message, {"WWW-Authenticate": "Bearer"})
        if not visit.is_work or visit.path not in self.endpoints:
            return
        if self.stopping:
            raise ApiError("stopping", "the server is being stopped and takes no new work", {"Retry-After": "5"})
        if visit.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError("not_json", "send JSON, with the header Content-Type: application/json")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        assert self._key is not None
        # Of equal length, and compared in equal time: how long it takes says nothing about the key.
        return hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._key) and scheme.lower() == "bearer"

    async def _read(self, visit: Visit) -> bytes:
        """The whole body. Raises ApiError for one too large or too slow, Gone if the client leaves."""
        told = visit.headers.get("content-length", "")
        if told.isdecimal() and int(told) > self.limits.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                return await self._read_on(visit)
        except TimeoutError:
            raise ApiError("slow_body", f"the body took longer than {self.limits.body_seconds:g} s") from None

    async def _read_on(self, visit: Visit) -> bytes:
        body = bytearray()
        while not visit.read_to_end:
            part = await _part(visit)
            if len(body) + len(part) > self.limits.body_bytes:
                raise self._too_large()
            if visit.is_work:
                if self._held + len(part) > self.limits.held_bytes:
                    raise self._busy("requests in work hold as many bytes as the server keeps")
                self._hold(visit, len(part))
            body += part
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError("body_too_large", f"the body is too large: {self.limits.body_bytes:,} bytes are the most")

    def _busy(self, why: str) -> ApiError:
        seconds = self.batcher.retry_after()
        return ApiError("busy", f"{why}: come again in {seconds} s", {"Retry-After": str(seconds)})

    def _hold(self, visit: Visit, more: int) -> None:
        visit.held += more
        self._held += more
        self.measures.held.set(self._held)

    def _set_working(self, more: int) -> None:
        self.working += more
        self.measures.open.set(self.working)

    # ------------------------------------------------------------------ inside, and out

    async def _through(self, visit: Visit, body: bytes, coming: Coming | None) -> None:
        """The application's answer, unless the client leaves first or it takes too long: then its work is dropped."""
        scope = {**visit.scope, "state": {**visit.scope.get("state", {}), "coming": coming}}
        answer = asyncio.ensure_future(self.app(scope, _replay(body), visit.send))
        gone = asyncio.ensure_future(_until_gone(visit.receive))
        try:
            limit = self.limits.seconds
            await asyncio.wait({answer, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise Gone
            raise ApiError("timed_out", f"the answer was not ready within {limit:g} s")
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def _refuse(self, visit: Visit, refused: ApiError) -> None:
        """Answers with an error, unless an answer has begun: then the connection ends."""
        if visit.scope.get("diptych.status"):
            return
        response = refused.response()
        if not visit.read_to_end and not await self._discarded(visit):
            response.headers["Connection"] = "close"
        await response(visit.scope, visit.receive, visit.send)

    async def _discarded(self, visit: Visit) -> bool:
        """Reads the rest of a refused body, as long again at most: who is still sending does not read the answer.

        True if that was all of it. A client that asked whether to send at all (Expect) has not begun to.
        """
        if "expect" in visit.headers:
            return False
        read = 0
        with suppress(TimeoutError, Gone):
            async with asyncio.timeout(self.limits.body_seconds / 4):
                while not visit.read_to_end and read <= self.limits.body_bytes:
                    read += len(await _part(visit))
        return visit.read_to_end

    # ------------------------------------------------------------------ counting

    def _counted(self, scope: Scope, send: Send) -> Send:
        begun = time.monotonic()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["diptych.status"] = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *PROTECTED]}
                endpoint = self._endpoint(scope["path"])
                self.measures.requests.labels(endpoint, str(message["status"])).inc()
                self.measures.seconds.labels(endpoint).observe(time.monotonic() - begun)
            await send(message)

        return counting

    def _count(self, visit: Visit, status: int) -> None:
        if not visit.scope.get("diptych.status"):
            self.measures.requests.labels(self._endpoint(visit.path), str(status)).inc()

    def _endpoint(self, path: str) -> str:
        return path if path in self.endpoints else OTHER


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host(header: str) -> str:
    """The name in a Host header, without its port.

    >>> _host("LocalHost:8080"), _host("[::1]:80"), _host("127.0.0.1")
    ('localhost', '[::1]', '127.0.0.1')
    """
    name, _, port = header.rpartition(":")
    return (name if name and port.isdecimal() else header).lower()


async def _part(visit: Visit) -> bytes:
    """The next of the body. Raises Gone."""
    message = await visit.receive()
    if message["type"] == "http.disconnect":
        raise Gone
    visit.read_to_end = not message.get("more_body", False)
    part: bytes = message.get("body", b"")
    return part


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replay(body: bytes) -> Receive:
    """A body that was read, as an application receives it."""
    messages: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            message: Message = messages.pop()
            return message
        await asyncio.Event().wait()  # the gate itself watches for the client's leaving
        raise AssertionError

    return receive
