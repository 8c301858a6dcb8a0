"""Listens, serves, and stops gracefully: accepted requests are finished, later ones are refused with an error."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from diptych.apps.serve.admission import AdmissionMiddleware
from diptych.apps.serve.app import ServerState, build_app
from diptych.apps.serve.limits import Limits
from diptych.predict import ModelPool, PooledModel

log = logging.getLogger("diptych.apps.serve")
KEY_VARIABLE = "DIPTYCH_API_KEY"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
LEAST_KEY = 16
"""Least number of characters of a key. Shorter keys could be guessed at the rate at which a server answers."""


class Server(uvicorn.Server):
    """Runs uvicorn, and finishes accepted requests after the first signal to stop while new ones get status 503."""

    def __init__(self, app: AdmissionMiddleware, limits: Limits, host: str, port: int) -> None:
        def protocol(*arguments: Any, **named: Any) -> asyncio.Protocol:
            return _TimedProtocol(limits, *arguments, **named)

        config = uvicorn.Config(
            app,
            host,
            port,
            http=protocol,  # type: ignore[arg-type]  # a factory serves as well as a class
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._app, self._limits = app, limits
        self._deadline = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops gracefully at the first signal, and at once at the second."""
        if self._app.stopping:
            self.should_exit = self.force_exit = True
        self.stop()

    def stop(self) -> None:
        """Stops gracefully, as the first signal does."""
        if not self._app.stopping:
            self._app.stopping = True
            self._deadline = time.monotonic() + self._limits.grace_seconds

    async def on_tick(self, counter: int) -> bool:
        done = self._app.stopping and (not self._app.in_flight or time.monotonic() > self._deadline)
        return await super().on_tick(counter) or done

    @property
    def address(self) -> str:
        """The URL of the running server."""
        return _url(self.servers[0].sockets[0].getsockname())


class _TimedProtocol(H11Protocol):
    """Closes connections that send no request in time, and those beyond the limit on connections."""

    def __init__(self, limits: Limits, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            transport.close()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_waiting()
        elif self._timeout is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()  # the head of the next request has begun

    def send_400_response(self, msg: str) -> None:
        """Answers in the shape of every other error. `msg` is always the same."""
        content = json.dumps({"error": {"code": "bad_http", "message": "this is not an HTTP request"}}).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + content)
        self.transport.close()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._timeout = self.loop.call_later(self._limits.body_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None


def serve(
    runs: Sequence[str | Path],
    index: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "auto",
    key: str | None = None,
    without_key: bool = False,
    names: Sequence[str] = (),
    limits: Limits | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT. Raises ValueError for runs, an index, a key or an address that cannot be used.

    `index` is a place that `diptych.apps.index.open_index` opens. Requests must send `key`; an address that other
    machines can reach requires one, or `without_key`. `names` are further names that a Host header may give.
    """
    limits = limits or Limits()
    check_open(host, key, without_key)
    listening = _listen(host, port)  # before loading the models, which may take long
    with listening:
        state = make_server_state(ModelPool.load(runs, device), index, limits)
        try:
            server = Server(build_app(state, key, allowed_hosts(host, names)), limits, host, port)
            url = _url(listening.getsockname())
            print(f"serving {len(state.pool.models)} model(s) at {url} (/ is the documentation)", flush=True)
            server.run(sockets=[listening])
        finally:
            state.close()


def make_server_state(pool: ModelPool, index: str | None, limits: Limits) -> ServerState:
    """Raises ValueError if the index cannot be opened, and if no model of the pool made it."""
    if index is None:
        return ServerState(pool, limits)
    opened, model = _open_index(index, pool)
    return ServerState(pool, limits, opened, model)


def _open_index(place: str, pool: ModelPool) -> tuple[Any, PooledModel]:
    from diptych.apps.index import open_index

    first_error = None
    for model in pool.able("embed"):
        try:
            return open_index(place, model.predictor), model
        except ValueError as error:
            first_error = first_error or error
    raise first_error or ValueError(f"{place} cannot be searched: {pool.models[0].predictor.missing('embed')}")


def check_open(host: str, key: str | None, without_key: bool) -> None:
    """Raises ValueError for an address that other machines can reach without a key, and for an invalid key."""
    if key is not None and (len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError(
            f"the key must be {LEAST_KEY} or more printable ASCII characters without spaces, as from: "
            'python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    if key is None and not without_key and not _is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, and there is no key: set {KEY_VARIABLE} or --api-key-file, "
            "or add --no-key if a proxy in front of it controls access"
        )


def allowed_hosts(host: str, names: Sequence[str]) -> list[str] | None:
    """Returns the names that a Host header may give; None accepts any.

    A server on loopback accepts its own names only. Otherwise a foreign web page could point its domain at this machine
    (DNS rebinding), and a browser would let it read the answers.
    """
    if not _is_loopback(host) and not names:
        return None
    loopback = [*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host] if _is_loopback(host) else []
    return [name.lower() for name in (*loopback, *names)]


def read_key(file: Path | None) -> str | None:
    """Reads the key from a file or, without one, from the environment. Raises ValueError for an empty file."""
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    if not (key := file.read_text(encoding="utf-8").strip()):
        raise ValueError(f"{file} holds no key")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except (OSError, OverflowError) as error:
        listening.close()
        raise ValueError(f"cannot listen at {host}:{port}: {error}") from None
    return listening


def _url(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
