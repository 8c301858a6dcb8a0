"""Runs a server with tiny models on loopback in a thread of its own, and provides clients and requests for it."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from diptych.apps.serve.admission import AdmissionMiddleware
from diptych.apps.serve.app import build_app
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.server import Server, make_server_state
from diptych.apps.serve.state import ServerState
from diptych.apps.web import LOOPBACK_NAMES
from diptych.predict import ModelPool
from tests.runs import TEXTS


@dataclass(frozen=True)
class Running:
    """A running server."""

    url: str
    state: ServerState
    admission: AdmissionMiddleware
    server: Server
    thread: threading.Thread

    def client(self, **named: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, **{"timeout": 30, "trust_env": False, "verify": False, **named})

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
        """Sends raw bytes, and returns what comes back until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(content)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def is_idle(self) -> bool:
        """Returns whether no request is in work and nothing is held for one.

        A client has its answer a little before the server lets go of it, so tests wait for this.
        """
        return not (self.admission.in_flight or self.admission.delivering or self.admission._held_bytes)

    def counted(self) -> dict[tuple[str, str], int]:
        """Returns the counted requests by endpoint and status, without those for the metrics."""
        counts = {}
        for metric in self.state.metrics.requests.collect():
            for sample in metric.samples:
                if sample.name == "diptych_requests_total" and sample.labels["endpoint"] != "/metrics":
                    counts[sample.labels["endpoint"], sample.labels["status"]] = int(sample.value)
        return counts


def wait_until(true: Callable[[], Any], seconds: float = 20) -> None:
    """Waits until a condition holds, and fails after some seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)


@contextmanager
def running(
    pool: ModelPool,
    limits: Limits | None = None,
    index: str | None = None,
    key: str | None = None,
    root_path: str = "",
    origins: Sequence[str] = (),
) -> Iterator[Running]:
    """Serves until the block ends, and then stops as after a signal."""
    state = make_server_state(pool, index, limits or Limits())
    admission = build_app(state, key, LOOPBACK_NAMES, root_path, origins)
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
    """Returns a valid request for each endpoint, which depends on the seed."""
    first, second = encoded(picture(seed)), encoded(picture(seed + 1000))
    text = TEXTS[seed % len(TEXTS)]
    return {
        "/v1/embed": {"pictures": [first, second], "texts": [text]},
        "/v1/match": {"pictures": [first, second], "texts": [text, "a boat"]},
        "/v1/search": {"text": text, "k": 2},
        "/v1/entail": {"picture": first, "hypotheses": [text, "a boat"]},
        "/v1/answer": {"picture": first, "questions": ["how many dogs", text], "k": 2},
        "/v1/compare": {"left": first, "right": second, "statements": [text]},
        "/v1/locate": {"picture": first, "phrases": [text, "a boat"]},
        "/v1/embeddings": {"input": [text, f"data:image/png;base64,{first}", {"type": "text", "text": "a boat"}]},
        "/v1/rerank": {"query": text, "documents": [{"image": first}, f"data:image/png;base64,{second}"], "top_n": 1},
    }


def error(response: httpx.Response) -> str:
    """Checks the shape of an error, and returns its code."""
    content = strict_json(response.content)
    assert content.keys() == {"error"}
    assert content["error"].keys() == {"code", "message", "type", "param"}
    assert content["error"]["message"]
    code: str = content["error"]["code"]
    return code


def strict_json(content: bytes) -> Mapping[str, Any]:
    """Parses JSON. Raises ValueError for NaN and Infinity, too."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    parsed: Mapping[str, Any] = json.loads(content, parse_constant=refuse)
    return parsed
