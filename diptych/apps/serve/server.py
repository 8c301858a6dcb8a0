"""Listens, serves, and stops gracefully: accepted requests are finished, later ones are refused with an error."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from diptych.apps.connections import BACKLOG, Connections, most_connections
from diptych.apps.serve.admission import AdmissionMiddleware
from diptych.apps.serve.app import build_app
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.state import ServerState
from diptych.apps.web import OncePerSecond, allowed_hosts, is_loopback, origin_of, root_path_of
from diptych.predict import ModelPool, PooledModel

log = logging.getLogger("diptych.apps.serve")
KEY_VARIABLE = "DIPTYCH_API_KEY"
LEAST_KEY = 16
"""Least number of characters of a key. Shorter keys could be guessed at the rate at which a server answers."""
QUEUE = 4_096
"""Connections that the system keeps until they are accepted. While the queue is full it forgets new ones, whose clients
try again after one second, then two, then four."""
PASSED_OVER = 128
"""Connections that have broken off while they waited, and are passed over before others get their turn."""
STOPPING = 2.0
"""Seconds of the time to stop that are kept for closing connections and threads."""


class Server(uvicorn.Server):
    """Runs uvicorn, and finishes accepted requests after the first signal to stop while new ones get status 503."""

    def __init__(self, app: AdmissionMiddleware, limits: Limits, host: str, port: int) -> None:
        most = most_connections(limits.connections)
        if most < limits.connections:
            log.warning("at most %d connections at once, for the process may open no more files", most)
        connections = Connections(most, limits.body_seconds, limits.answer_seconds)
        config = uvicorn.Config(
            app,
            host,
            port,
            http=connections.protocol,  # type: ignore[arg-type]  # a factory serves as well as a class
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            backlog=BACKLOG,
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
            grace = self._limits.grace_seconds
            self._deadline = time.monotonic() + grace - min(STOPPING, grace / 2)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(OncePerSecond(log))
        await super().serve(sockets)

    async def on_tick(self, counter: int) -> bool:
        open_requests = self._app.in_flight + self._app.delivering
        done = self._app.stopping and (not open_requests or time.monotonic() > self._deadline)
        return await super().on_tick(counter) or done

    @property
    def address(self) -> str:
        """The URL of the running server."""
        return _url(self.servers[0].sockets[0].getsockname())


class Listening(socket.socket):
    """Listens with a long queue, and passes over clients that have broken off while they were in it.

    Thousands of them would otherwise keep those behind them waiting, for each would be set up before it is closed.
    """

    def listen(self, *_: int) -> None:
        super().listen(QUEUE)

    def accept(self) -> tuple[socket.socket, Any]:
        for _ in range(PASSED_OVER):
            connection, address = super().accept()
            if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return connection, address
            connection.close()
        raise BlockingIOError  # others get their turn before the next ones


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
    root_path: str = "",
    precision: str = "fp32",
    origins: Sequence[str] = (),
) -> None:
    """Serves until SIGTERM or SIGINT. Raises ValueError for runs, an index, a key or an address that cannot be used.

    `index` is a place that `diptych.apps.index.open_index` opens. Requests must send `key`; an address that other
    machines can reach requires one, or `without_key`. `names` are further names that a Host header may give.
    `root_path` is a proxy's prefix: a path, or a whole address, whose host is then accepted too. `origins` are those of
    web pages that may ask and read the answers; `*` stands for all.
    """
    limits = limits or Limits()
    root_path, public_names = root_path_of(root_path)
    origins = list(map(origin_of, origins))
    check_open(host, key, without_key)
    listening = _listen(host, port)  # before loading the models, which may take long
    with listening:
        pool = ModelPool.load(runs, device, precision=precision)
        for note in pool.precision_notes():
            print(f"precision: {note}", file=sys.stderr)
        state = make_server_state(pool, index, limits)
        try:
            app = build_app(state, key, allowed_hosts(host, [*names, *public_names]), root_path, origins)
            server = Server(app, limits, host, port)
            url = _url(listening.getsockname())
            print(f"serving {len(state.pool.models)} model(s) at {url} (/ is the documentation)", flush=True)
            server.run(sockets=[listening])
        finally:
            state.close(STOPPING / 2)


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
    if key is None and not without_key and not is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, and there is no key: set {KEY_VARIABLE} or --api-key-file, "
            "or add --no-key if a proxy in front of it controls access"
        )


def read_key(file: Path | None) -> str | None:
    """Reads the key from a file or, without one, from the environment. Raises ValueError for an empty file."""
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    if not (key := file.read_text(encoding="utf-8").strip()):
        raise ValueError(f"{file} holds no key")
    return key


def _listen(host: str, port: int) -> Listening:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = Listening(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        raise ValueError(f"cannot listen at {host}:{port}: {error}") from None
    return listening


def _url(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
