"""A server on loopback in a thread of its own, with tiny models of every task, and a client that speaks to it."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from diptych.apps.serve.admission import AdmissionMiddleware
from diptych.apps.serve.app import ServerState, build_app
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.server import LOOPBACK_NAMES, Server, make_server_state
from diptych.predict import ModelPool
from tests.runs import TEXTS


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str
    state: ServerState
    admission: AdmissionMiddleware
    server: Server
    thread: threading.Thread

    def client(self, **named: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=False, **named)

    def post(self, path: str, body: Any = None, **named: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, **({"json": body} if body is not None else {}), **named)

    def get(self, path: str, **named: Any) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **named)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def raw(self, content: bytes, seconds: float = 10) -> bytes:
        """What comes back for these bytes, until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(content)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def counted(self) -> dict[tuple[str, str], int]:
        """Requests by endpoint and status, those for the metrics themselves left out."""
        found = {}
        for metric in self.state.metrics.requests.collect():
            for sample in metric.samples:
                if sample.name == "diptych_requests_total" and sample.labels["endpoint"] != "/metrics":
                    found[sample.labels["endpoint"], sample.labels["status"]] = int(sample.value)
        return found


@contextmanager
def running(
    pool: ModelPool, limits: Limits | None = None, index: str | None = None, key: str | None = None
) -> Iterator[Running]:
    """Serves until the block ends, and stops as a signal would have it."""
    state = make_server_state(pool, index, limits or Limits())
    admission = build_app(state, key, LOOPBACK_NAMES)
    server = Server(admission, state.limits, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(server.address, state, admission, server, thread)
    finally:
        server.stop()
        thread.join(30)
        state.close()
        assert not thread.is_alive()


def picture(seed: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*reversed(size), 3), np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    image.save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


def requests(seed: int = 0) -> dict[str, dict[str, Any]]:
    """A proper request to each endpoint; another for another seed."""
    one, other = encoded(picture(seed)), encoded(picture(seed + 1000))
    text = TEXTS[seed % len(TEXTS)]
    return {
        "/v1/embed": {"pictures": [one, other], "texts": [text]},
        "/v1/match": {"pictures": [one, other], "texts": [text, "a boat"]},
        "/v1/search": {"text": text, "k": 2},
        "/v1/entail": {"picture": one, "hypotheses": [text, "a boat"]},
        "/v1/answer": {"picture": one, "questions": ["how many dogs", text], "k": 2},
        "/v1/compare": {"left": one, "right": other, "statements": [text]},
        "/v1/locate": {"picture": one, "phrases": [text, "a boat"]},
    }


def error(response: httpx.Response) -> str:
    """The code of an error, whose shape is checked."""
    content = strict_json(response.content)
    assert content.keys() == {"error"}
    assert content["error"].keys() == {"code", "message"}
    assert content["error"]["message"]
    code: str = content["error"]["code"]
    return code


def strict_json(content: bytes) -> Mapping[str, Any]:
    """Raises ValueError for NaN and Infinity, too."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    found: Mapping[str, Any] = json.loads(content, parse_constant=refuse)
    return found
