"""Listens, serves, and stops well: what was taken is finished, what comes later is refused in words."""

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

from diptych.apps.serve.app import ServerState, build_app
from diptych.apps.serve.gate import Gate
from diptych.apps.serve.limits import Limits
from diptych.predict import ModelPool, PooledModel

log = logging.getLogger("diptych.apps.serve")
KEY_VARIABLE = "DIPTYCH_API_KEY"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
LEAST_KEY = 16
"""Characters of a key: shorter ones can be guessed at the rate that a server answers."""


class Server(uvicorn.Server):
    """Uvicorn's, but that the first signal to stop lets it answer what it took, and say 503 to what still comes."""

    def __init__(self, gate: Gate, limits: Limits, host: str, port: int) -> None:
        def protocol(*arguments: Any, **named: Any) -> asyncio.Protocol:
            return _Patient(limits, *arguments, **named)

        config = uvicorn.Config(
            gate,
            host,
            port,
            http=protocol,  # type: ignore[arg-type]  # a maker of protocols does as well as a class
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
        self._gate, self._limits = gate, limits
        self._last = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal ends it at once."""
        if self._gate.stopping:
            self.should_exit = self.force_exit = True
        self.stop()

    def stop(self) -> None:
        """As the first signal does."""
        if not self._gate.stopping:
            self._gate.stopping = True
            self._last = time.monotonic() + self._limits.grace_seconds

    async def on_tick(self, counter: int) -> bool:
        done = self._gate.stopping and (not self._gate.working or time.monotonic() > self._last)
        return await super().on_tick(counter) or done

    @property
    def address(self) -> str:
        """As a client writes it, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Patient(H11Protocol):
    """Uvicorn's protocol, but that a connection which sends no request in time is closed, as is one too many."""

    def __init__(self, limits: Limits, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._patience: asyncio.TimerHandle | None = None

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
        elif self._patience is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()  # the head of a next request has begun

    def send_400_response(self, msg: str) -> None:
        """In our one shape; `msg` is always the same."""
        content = json.dumps({"error": {"code": "bad_http", "message": "this is no HTTP request"}}).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + content)
        self.transport.close()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(self._limits.body_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


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
    """Serves until SIGTERM or SIGINT. Raises ValueError for what cannot be served, OSError for an address in use.

    `index`: what `diptych.apps.index.open_index` opens. `key`: what requests must bring; an address that other machines
    reach needs one, or `without_key`. `names`: further names that a Host header may give.
    """
    limits = limits or Limits()
    check_open(host, key, without_key)
    listening = _listen(host, port)  # before the models are loaded, which may take long
    with listening:
        state = make_server_state(ModelPool.load(runs, device), index, limits)
        try:
            server = Server(build_app(state, key, allowed_hosts(host, names)), limits, host, port)
            told = listening.getsockname()
            address = f"[{told[0]}]:{told[1]}" if ":" in told[0] else f"{told[0]}:{told[1]}"
            print(f"serving {len(state.pool.models)} model(s) at http://{address} (/ says how to ask)", flush=True)
            server.run(sockets=[listening])
        finally:
            state.close()


def make_server_state(pool: ModelPool, index: str | None, limits: Limits) -> ServerState:
    """Raises ValueError for an index that is none, or that no model on the pool has made."""
    if index is None:
        return ServerState(pool, limits)
    opened, model = _open_index(index, pool)
    return ServerState(pool, limits, opened, model)


def _open_index(place: str, pool: ModelPool) -> tuple[Any, PooledModel]:
    from diptych.apps.index import open_index

    able, first = pool.able("embed"), None
    for one in able:
        try:
            return open_index(place, one.predictor), one
        except ValueError as error:
            first = first or error
    raise first or ValueError(f"{place} cannot be searched: {pool.models[0].predictor.missing('embed')}")


def check_open(host: str, key: str | None, without_key: bool) -> None:
    """Raises ValueError for an address that others reach without a key, and for a key that is none."""
    if key is not None and (len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError(
            f"the key has to be {LEAST_KEY} or more printable ASCII characters without blanks, as from: "
            'python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    if key is None and not without_key and not _is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, and there is no key: set {KEY_VARIABLE} or --api-key-file, "
            "or say --no-key if something in front of it decides who may ask"
        )


def allowed_hosts(host: str, names: Sequence[str]) -> list[str] | None:
    """Names that a Host header may give; None: any.

    On loopback only its own: else a web page elsewhere could have its name lead here, and a browser would let it read.
    """
    if not _is_loopback(host) and not names:
        return None
    own = [*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host] if _is_loopback(host) else []
    return [name.lower() for name in (*own, *names)]


def read_key(file: Path | None) -> str | None:
    """The key in a file or, without one, in the environment. Raises ValueError for an empty file."""
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
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(2048)
    except (OSError, OverflowError) as error:
        made.close()
        raise ValueError(f"cannot listen at {host}:{port}: {error}") from None
    return made
