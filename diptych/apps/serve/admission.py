"""Admits requests to the application: checks their host and key, reads their bodies within limits, and times them out.

Bodies are read here in full, so that the application never parses a body that is too large or does not end. Answers are
collected here in full, so that everything that is held for a client is counted until the client has taken it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.apps.connections import ABORT
from diptych.apps.serve.batching import Batcher, ExpectedRequest
from diptych.apps.serve.errors import ApiError, failed
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.metrics import OTHER, Metrics
from diptych.apps.web import host_is_allowed, without_prefix

log = logging.getLogger("diptych.apps.serve")
PUBLIC = frozenset({"/healthz", "/", "/openapi.json"})
"""Paths that need no key: their contents reveal nothing about the served models."""
SECURITY_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)
CLIENT_CLOSED_REQUEST = 499
"""The status that metrics count when a client leaves before its answer, as in nginx."""
PIECE = 1 << 16
"""Bytes of an answer that are handed to the connection at a time."""
DISCARDED = 1 << 20
"""Bytes of a refused body that are read in any case, so that its client gets to read the answer."""
GZIP = 31
"""The zlib window of the gzip format."""
ANY_ORIGIN = "*"
PREFLIGHT_HEADERS = (
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    (b"access-control-max-age", b"600"),
)
"""What a browser is told that asks on behalf of a web page of another origin (CORS)."""


class ClientLeft(Exception):
    """Says that the client has closed its connection, or was cut off."""


class Body:
    """The bytes of a request's body, which can be taken once, so that nobody keeps them."""

    def __init__(self, content: bytearray) -> None:
        self._content = content

    def take(self) -> bytes:
        content, self._content = bytes(self._content), bytearray()
        return content


@dataclass
class Answer:
    """A complete answer."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    async def collect(self, message: Message) -> None:
        """Takes a message of the application."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")


class Exchange:
    """One HTTP request with the channels to its client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, takes_body: bool) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.headers = Headers(scope=scope)
        self.path: str = scope["path"]
        self.for_model = takes_body
        self.start = time.monotonic()
        self.held_bytes = 0
        self.read_to_end = not ("transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0")


class AdmissionMiddleware:
    """Wraps an ASGI application and admits requests to it."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        batcher: Batcher,
        paths: Mapping[str, Collection[str]],
        key: str | None = None,
        hosts: Collection[str] | None = None,
        root_path: str = "",
        origins: Collection[str] = (),
    ) -> None:
        """`paths` are the existing paths and their methods, `hosts` the accepted Host headers (None accepts any), both
        in lower case. `root_path` is taken off the beginning of paths. Web pages of `origins` may read the answers.
        """
        self.app, self.limits, self.metrics, self.batcher = app, limits, metrics, batcher
        self.endpoints = {*paths, *PUBLIC}
        self._take_bodies = {path for path, methods in paths.items() if "post" in methods}
        self.hosts, self._root_path, self._origins = hosts, root_path, origins
        self._key = None if key is None else _digest(key.encode())
        self.stopping = False
        self.in_flight = 0
        """Number of open requests to models."""
        self.delivering = 0
        """Number of answers that their clients are reading."""
        self._held_bytes = 0
        """Bytes of the bodies and answers that are held."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        scope = self._with_local_path(scope)
        takes_body = scope["method"] == "POST" and scope["path"] in self._take_bodies
        exchange = Exchange(scope, receive, send, takes_body)
        try:
            try:
                answer = await self._admit(exchange)
            except ApiError as error:
                answer = await self._refusal(error)
            except ClientLeft:
                self.metrics.requests.labels(self._endpoint(exchange.path), str(CLIENT_CLOSED_REQUEST)).inc()
                return
            except Exception as error:
                answer = await self._refusal(failed(error))
            # Nothing of the body is held any more. The answer is, until the client has taken it.
            self._hold(exchange, len(answer.body) - exchange.held_bytes)
            await self._deliver(exchange, answer)
        except ClientLeft:
            pass  # the answer was counted when it was begun
        finally:
            self._hold(exchange, -exchange.held_bytes)

    def _with_local_path(self, scope: Scope) -> Scope:
        """Takes the proxy's prefix and slashes too many off the path, and answers HEAD as GET, whose body the
        connection leaves out."""
        path = without_prefix(scope["path"], self._root_path)
        plain = re.sub("/+", "/", path).rstrip("/") or "/"  # clients write /v1/embed/, and /v1//embed for a base /v1/
        path = plain if plain in self.endpoints else path
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        return {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "method": method}

    # ------------------------------------------------------------------ admission

    async def _admit(self, exchange: Exchange) -> Answer:
        self._check_host(exchange)
        if exchange.scope["method"] == "OPTIONS" and "access-control-request-method" in exchange.headers:
            return self._answer_preflight(exchange)
        self._check_head(exchange)
        if not exchange.for_model:
            return await self._forward(exchange, Body(bytearray()), None)
        if self.in_flight >= self.limits.queue:
            raise self._busy(f"{self.in_flight} requests are in progress")
        self._count_in_flight(+1)
        expected = None
        try:
            body = await self._read_body(exchange)
            expected = ExpectedRequest(self.batcher)
            return await self._forward(exchange, body, expected)
        finally:
            if expected is not None:
                expected.arrived()
            self._count_in_flight(-1)

    def _check_host(self, exchange: Exchange) -> None:
        if not host_is_allowed(exchange.headers.get("host"), self.hosts, exchange.scope["http_version"]):
            raise ApiError("wrong_host", "this server answers to its own names only; --allow-host adds one")

    def _answer_preflight(self, exchange: Exchange) -> Answer:
        """Answers a browser that asks whether a web page may send a request. Such a question has no key."""
        if not self._cross_origin(exchange):
            raise ApiError("wrong_method", "web pages of this origin may not ask; --allow-origin of the server adds it")
        wanted = exchange.headers.get("access-control-request-headers", "").encode("latin-1")
        return Answer(204, [*PREFLIGHT_HEADERS, (b"access-control-allow-headers", wanted)])

    def _cross_origin(self, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        """Returns the headers that let a web page of an allowed origin read an answer."""
        origin = exchange.headers.get("origin", "")
        allowed = ANY_ORIGIN if ANY_ORIGIN in self._origins else origin
        if not origin or allowed.lower() not in self._origins:
            return []
        return [(b"access-control-allow-origin", allowed.encode("latin-1")), (b"access-control-expose-headers", b"*")]

    def _check_head(self, exchange: Exchange) -> None:
        """Checks key, content type and encoding. Raises ApiError."""
        if self._key is not None and exchange.path not in PUBLIC and not self._has_key(exchange.headers):
            message = "this server requires a key: send the header Authorization: Bearer KEY"
            raise ApiError("no_key", message, {"WWW-Authenticate": "Bearer"})
        if not exchange.for_model:
            return
        if self.stopping:
            raise ApiError("stopping", "the server is being stopped and accepts no new requests", {"Retry-After": "5"})
        if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError("not_json", "send JSON, with the header Content-Type: application/json")
        if (encoding := _encoding(exchange.headers)) not in ("", "gzip"):
            raise ApiError("bad_encoding", f"Content-Encoding {encoding}: send the body as it is, or by gzip")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        assert self._key is not None
        # Digests have equal lengths and are compared in constant time, so that the time reveals nothing about the key.
        return hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._key) and scheme.lower() == "bearer"

    async def _read_body(self, exchange: Exchange) -> Body:
        """Reads the whole body, and unpacks it if it is packed. All limits are on what it is unpacked.

        Raises ApiError for a body that is too large or too slow, and ClientLeft if the client leaves.
        """
        length = exchange.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.limits.body_bytes:
            raise self._too_large()
        unpack = zlib.decompressobj(GZIP) if _encoding(exchange.headers) else None
        body, sent = bytearray(), 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while not exchange.read_to_end:
                    chunk = await _next_chunk(exchange)
                    sent += len(chunk)
                    if unpack is not None:
                        chunk = unpack.decompress(chunk, self.limits.body_bytes + 1 - len(body))
                        if unpack.unused_data:
                            raise zlib.error
                    if max(len(body) + len(chunk), sent) > self.limits.body_bytes:
                        raise self._too_large()
                    if self._held_bytes + len(chunk) > self.limits.held_bytes:
                        raise self._busy("the bodies and answers of open requests fill the server's memory for them")
                    self._hold(exchange, len(chunk))
                    body += chunk
            if unpack is not None and not unpack.eof:
                raise zlib.error
        except TimeoutError:
            raise ApiError("slow_body", f"the body took longer than {self.limits.body_seconds:g} s") from None
        except zlib.error:
            raise ApiError("bad_encoding", "the body is not one whole gzip stream, as Content-Encoding says") from None
        except ApiError as error:
            body.clear()  # an error is kept, with its frames and what they hold, until it has been answered
            raise error
        return Body(body)

    def _too_large(self) -> ApiError:
        return ApiError(
            "body_too_large", f"the body is too large: at most {self.limits.body_bytes:,} bytes are allowed"
        )

    def _busy(self, reason: str) -> ApiError:
        seconds = self.batcher.retry_after()
        return ApiError("busy", f"{reason}: retry in {seconds} s", {"Retry-After": str(seconds)})

    def _hold(self, exchange: Exchange, change: int) -> None:
        exchange.held_bytes += change
        self._held_bytes += change
        self.metrics.held_bytes.set(self._held_bytes)

    def _count_in_flight(self, change: int) -> None:
        self.in_flight += change
        self.metrics.open.set(self.in_flight)

    # ------------------------------------------------------------------ answers

    async def _forward(self, exchange: Exchange, body: Body, expected: ExpectedRequest | None) -> Answer:
        """Runs the application, and cancels it if the client leaves first or the time is over."""
        state = {**exchange.scope.get("state", {}), "expected": expected, "body": body}
        answer, scope = Answer(), {**exchange.scope, "state": state}
        running = asyncio.ensure_future(self.app(scope, _no_body(), answer.collect))
        watched = {running}
        if exchange.read_to_end:  # otherwise the client is still sending what nobody reads
            watched.add(asyncio.ensure_future(_until_disconnect(exchange.receive)))
        try:
            limit = self.limits.seconds
            await asyncio.wait(watched, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                return answer
            if any(task.done() for task in watched):
                raise ClientLeft
            raise ApiError("timed_out", f"the answer was not ready within {limit:g} s")
        finally:
            for task in watched:
                task.cancel()
            await asyncio.gather(*watched, return_exceptions=True)

    async def _refusal(self, error: ApiError) -> Answer:
        """Returns the answer that tells an error."""
        answer = Answer()
        await error.response()({"type": "http"}, _no_body(), answer.collect)
        return answer

    async def _deliver(self, exchange: Exchange, answer: Answer) -> None:
        """Sends an answer piece by piece, and cuts the connection if the client does not take it. Raises ClientLeft."""
        headers = [*answer.headers, *SECURITY_HEADERS, *self._cross_origin(exchange)]
        headers += [(b"vary", b"Origin")] if self._origins else []
        if not exchange.read_to_end and not await self._discard_body(exchange):
            headers.append((b"connection", b"close"))
        endpoint = self._endpoint(exchange.path)
        self.metrics.requests.labels(endpoint, str(answer.status)).inc()
        self.metrics.seconds.labels(endpoint).observe(time.monotonic() - exchange.start)
        self.delivering += 1
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                await exchange.send({"type": "http.response.start", "status": answer.status, "headers": headers})
                for start in range(0, max(len(answer.body), 1), PIECE):
                    piece, more = bytes(answer.body[start : start + PIECE]), start + PIECE < len(answer.body)
                    await exchange.send({"type": "http.response.body", "body": piece, "more_body": more})
        except TimeoutError:
            if ABORT in exchange.scope:
                exchange.scope[ABORT]()
                await asyncio.sleep(0)  # the connection tells that it is lost
            raise ClientLeft from None
        finally:
            self.delivering -= 1

    async def _discard_body(self, exchange: Exchange) -> bool:
        """Reads the rest of a refused body within limits, because a client that still sends does not read the answer.

        Nothing of it is kept. Returns whether the body ended. A client that sent the header Expect has not begun to
        send its body.
        """
        if "expect" in exchange.headers:
            return False
        read = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.body_seconds / 4):
                while not exchange.read_to_end and read <= max(self.limits.body_bytes, DISCARDED):
                    read += len(await _next_chunk(exchange))
        return exchange.read_to_end

    # ------------------------------------------------------------------ metrics

    def _endpoint(self, path: str) -> str:
        return path if path in self.endpoints else OTHER


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _encoding(headers: Headers) -> str:
    """Returns how the body is packed; an empty text if it is not."""
    encoding = ", ".join(headers.getlist("content-encoding")).strip().lower()
    return {"identity": "", "x-gzip": "gzip"}.get(encoding, encoding)


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


def _no_body() -> Receive:
    """Returns the application's channel for the body, which it finds in the request's state instead."""
    told = False

    async def receive() -> Message:
        nonlocal told
        if told:
            await asyncio.Event().wait()  # the middleware itself watches for a disconnect
        told = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive
