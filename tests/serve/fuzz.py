"""Sends many invalid and some valid requests to a server, and checks that it stays healthy.

    python -m tests.serve.fuzz --requests 10000

Schemathesis draws half of them, valid and invalid ones, from the server's own OpenAPI description. The others are
valid requests that were mutated, and among them a few that are made to cost much (`HEAVY`). A server of tiny models
runs in this process, on loopback, at its default limits.

Beside them /healthz is asked five times a second. It must answer within half a second, and memory must not grow by more
than the server may hold and a quarter.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import random
import re
import resource
import string
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.generation.modes import GenerationMode

from diptych.apps.serve.limits import Limits
from diptych.predict import ModelPool
from tests.runs import save_family
from tests.serve.server_state import Running, encoded, error, picture, requests, running, strict_json

LIMITS = Limits()
CLIENTS = 8
HEAVY_SHARE = 0.02
"""Share of the requests by hand that are made to cost much."""
PATIENCE = 120.0
"""Seconds that clients wait: longer than the server takes to say that it took too long."""
SLOWEST_HEALTH = 0.5
"""Seconds within which /healthz answers, whatever others ask."""
INTENDED = {503, 504}
"""Statuses of 500 and more that a server may return on purpose."""
Prepared = Callable[[httpx.Client], httpx.Response]


@dataclass
class Outcome:
    """Collects what the clients saw."""

    seen: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Number of answers by path, as the server counts it, and status."""
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: list[int] = field(default_factory=list)
    """Memory of this process in MiB at the beginning and after each quarter of the requests."""
    slowest_health: float = 0.0

    def __str__(self) -> str:
        statuses = Counter[int]()
        for (_, status), count in self.seen.items():
            statuses[status] += count
        counts = ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items()))
        sizes = " → ".join(map(str, self.memory))
        return (
            f"{statuses.total():,} requests: {counts}; slowest {self.slowest:.2f} s; slowest /healthz "
            f"{self.slowest_health:.2f} s; largest memory {sizes} MiB; "
            f"{len(self.wrong)} wrong\n" + "\n".join(self.wrong[:10])
        )


def fuzz(server: Running, count: int, seed: int = 0) -> Outcome:
    """Sends `count` requests from several clients, and compares what they saw with what the server counted."""
    drawn = described(server, count - count // 2, seed)
    mixed = [*drawn, *(hostile(random.Random(f"{seed}/{number}")) for number in range(count // 2))]
    random.Random(seed).shuffle(mixed)
    known = set(server.admission.endpoints)
    before, outcome = server.counted(), Outcome()
    outcome.memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
    with ThreadPoolExecutor(CLIENTS) as pool, Health(server) as health:
        clients = [server.client(timeout=PATIENCE) for _ in range(CLIENTS)]
        size = max(1, len(mixed) // 4)
        for start in range(0, len(mixed), size):
            part = mixed[start : start + size]
            for part_outcome in pool.map(
                lambda n, part=part: ask_some(clients[n], part[n::CLIENTS], known), range(CLIENTS)
            ):  # type: ignore[misc]
                outcome.seen += part_outcome.seen
                outcome.wrong += part_outcome.wrong
                outcome.slowest = max(outcome.slowest, part_outcome.slowest)
            outcome.memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
        for client in clients:
            client.close()
    outcome.seen += health.seen
    outcome.slowest_health = health.slowest
    patience = time.monotonic() + 20
    while not server.is_idle() and time.monotonic() < patience:
        time.sleep(0.01)
    if not server.is_idle():
        outcome.wrong.append(
            f"{server.admission.in_flight} requests and {server.admission._held_bytes} bytes are still in flight"
        )
    after = server.counted()
    grown = {(path, int(status)): n - before.get((path, status), 0) for (path, status), n in after.items()}
    if +Counter(grown) != outcome.seen:
        outcome.wrong.append(
            f"the server counted {+Counter(grown) - outcome.seen}, clients {outcome.seen - +Counter(grown)}"
        )
    return outcome


class Health:
    """Asks /healthz from a thread of its own until the block ends."""

    def __init__(self, server: Running) -> None:
        self.server, self.slowest, self.seen = server, 0.0, Counter[tuple[str, int]]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _ask(self) -> None:
        with self.server.client(timeout=PATIENCE) as client:
            while not self._over.wait(0.2):
                start = time.perf_counter()
                self.seen["/healthz", client.get("/healthz").status_code] += 1
                self.slowest = max(self.slowest, time.perf_counter() - start)


def ask_some(client: httpx.Client, requests_of_client: list[Prepared], known: set[str]) -> Outcome:
    outcome = Outcome()
    for request in requests_of_client:
        start = time.perf_counter()
        try:
            response = request(client)
        except httpx.InvalidURL:
            continue
        except httpx.HTTPError as failure:
            outcome.wrong.append(f"{type(failure).__name__}: {failure}")
            continue
        outcome.slowest = max(outcome.slowest, time.perf_counter() - start)
        path = re.sub("/+", "/", response.request.url.path).rstrip("/") or "/"  # the server takes slashes too many
        if path != "/metrics":
            outcome.seen[path if path in known else "other", response.status_code] += 1
        if problem := complaint(response):
            outcome.wrong.append(f"{response.request.method} {path} {response.status_code}: {problem}")
    return outcome


def complaint(response: httpx.Response) -> str | None:
    if response.status_code >= 500 and response.status_code not in INTENDED:
        return response.text
    if response.request.method == "HEAD":
        return None
    try:
        if response.status_code >= 400:
            error(response)
        elif response.headers["content-type"] == "application/json":
            strict_json(response.content)
    except (ValueError, AssertionError) as wrong:
        return f"{wrong}: {response.text[:200]}"
    return None


# --------------------------------------------------------------------------- by the description


def described(server: Running, count: int, seed: int) -> list[Prepared]:
    """Draws valid and invalid requests with schemathesis, equally many for every operation."""
    schemathesis.openapi.format(
        "picture", st.sampled_from([encoded(picture(n)) for n in range(4)]) | st.text(max_size=20)
    )
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    each = -(-count // (2 * len(operations)))
    cases: list[Prepared] = []
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                cases += drawn(operation.as_strategy(generation_mode=mode), each, seed)
            except hypothesis.errors.Unsatisfiable:  # an operation that takes nothing has no wrong request
                continue
    while len(cases) < count:
        cases += cases[: count - len(cases)]
    return cases[:count]


def drawn(strategy: Any, count: int, seed: int) -> Iterator[Prepared]:
    cases: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategy)
    def collect(case: Any) -> None:
        cases.append(case)

    collect()
    return (prepared(case) for case in cases)


def prepared(case: Any) -> Prepared:
    named = case.as_transport_kwargs()
    path = "/" + named["url"].split("/", 3)[-1]
    body = (
        {"content": json.dumps(named["json"]).encode()} if "json" in named else {"content": _bytes(named.get("data"))}
    )
    headers = {name: value for name, value in (named.get("headers") or {}).items() if name.lower() != "user-agent"}
    if "json" in named:
        headers.setdefault("Content-Type", "application/json")
    params = named.get("params") or None

    def send(client: httpx.Client) -> httpx.Response:
        sent = {name: str(value).encode("utf-8", "replace") for name, value in headers.items()}
        return client.request(named["method"], path, params=params, headers=sent, **body)

    return send


def _bytes(data: Any) -> bytes:
    return data if isinstance(data, bytes) else str(data or "").encode("utf-8", "replace")


# --------------------------------------------------------------------------- by hand


def hostile(dice: random.Random) -> Prepared:
    """Mutates a valid request at random, or builds one that is made to cost much."""
    if dice.random() < HEAVY_SHARE:
        return heavy(dice)
    path, body = dice.choice(list(requests(dice.randrange(50)).items()))
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
        body = mutated(body, dice)
    content = json.dumps(body).encode()
    if dice.random() < 0.3:
        content = dice.choice(BYTES)(content, dice)
    headers = {
        "Content-Type": dice.choice(("application/json",) * 12 + ("text/plain", "", "application/xml", "a" * 500))
    }
    if dice.random() < 0.1:
        headers |= dice.choice(
            ({"Host": "elsewhere"}, {"X-Long": "x" * 3000}, {"Accept": "?"}, {"Expect": "100-continue"})
        )
    method = dice.choice(("POST",) * 15 + ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"))
    path = path if dice.random() < 0.95 else path + dice.choice(("/", "/../metrics", "%00", "?a=1", "//", ";x", "%ff"))
    parts = dice.random() < 0.1

    def send(client: httpx.Client) -> httpx.Response:
        return client.request(method, path, headers=headers, content=iter([content]) if parts else content)

    return send


def mutated(value: Any, dice: random.Random) -> Any:
    """Replaces, removes or adds something inside a JSON value."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        name = dice.choice(list(value))
        doing = dice.random()
        if doing < 0.1:
            return {other: inner for other, inner in value.items() if other != name}
        if doing < 0.2:
            return value | {dice.choice(("path", "url", "__proto__", "", "\ud800", "picture", "model")): odd(dice)}
        return value | {name: mutated(value[name], dice)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        return [mutated(inner, dice) if number == place else inner for number, inner in enumerate(value)]
    if isinstance(value, str) and dice.random() < 0.5:
        return broken(value, dice)
    return odd(dice)


def broken(text: str, dice: random.Random) -> str:
    """Damages a text or a picture."""
    cut = dice.randrange(len(text) + 1)
    try:
        raw = bytearray(base64.b64decode(text, validate=True))
    except ValueError:
        return dice.choice((text[:cut], text * 30, text[::-1], text.upper() + "\x00\u202e\U0001f40b"))
    if raw and dice.random() < 0.7:
        for _ in range(dice.randint(1, 20)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        return base64.b64encode(raw[: dice.randrange(len(raw)) + 1] if dice.random() < 0.3 else raw).decode()
    return text[:cut]


def odd(dice: random.Random) -> Any:
    return dice.choice(ODD)() if dice.random() < 0.9 else "".join(dice.choices(string.printable, k=dice.randrange(40)))


ODD: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: -1, lambda: 0, lambda: 10**30, lambda: 1e308, lambda: float("nan"),
    lambda: float("-inf"), lambda: "", lambda: " ", lambda: "?!", lambda: "\x00", lambda: "\ud800", lambda: "a" * 3000,
    list, dict, lambda: [[]], lambda: ["a boat"] * 65, lambda: [None], lambda: [0, 0, 5, 5],
    lambda: [[0, 0, 5, 5]], lambda: [[1e308, -1e308, 1e308, 1e308]],
    lambda: [[0, 0, 1e-320, 1]], lambda: [[0, 0, -5, float("inf")]], lambda: "/etc/passwd", lambda: "file:///etc/passwd",
    lambda: "http://127.0.0.1/", lambda: encoded(picture(1, (500, 300))), lambda: encoded(picture(1), "JPEG"),
    lambda: encoded(picture(1), "GIF"), lambda: encoded(picture(1), "TIFF"), lambda: encoded(picture(1), "PPM"),
    lambda: encoded(picture(1), "WEBP"), lambda: encoded(picture(1), "JPEG2000"),
]  # fmt: skip
BYTES: list[Callable[[bytes, random.Random], bytes]] = [
    lambda content, dice: content[: dice.randrange(len(content) + 1)],
    lambda content, dice: b"[" * dice.randrange(100_000),
    lambda content, dice: content + b" " * (LIMITS.body_bytes + 1 if dice.random() < 0.1 else 210_000),
    lambda content, dice: content.replace(b'"', b"'"),
    lambda content, dice: b"\xff\xfe" + content,
    lambda content, dice: content.decode().encode("utf-16"),
    lambda content, dice: b'{"k": ' + b"9" * 5_000 + b"}",
    lambda content, dice: dice.randbytes(dice.randrange(2_000)),
    lambda content, dice: b"",
    lambda content, dice: b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
]


# --------------------------------------------------------------------------- costly


def heavy(dice: random.Random) -> Prepared:
    """Builds a request that is small or quick to send, and was made to take much time or memory."""
    path, body, headers = dice.choice(HEAVY)()
    method = "POST"
    if path == "/healthz":
        method = dice.choice(("GET", "POST", "PUT"))

    def send(client: httpx.Client) -> httpx.Response:
        return client.request(method, path, headers={"Content-Type": "application/json", **headers}, content=body)

    return send


Heavy = tuple[str, bytes, dict[str, str]]


def values(value: bytes, field: str = "texts", count: int = 1_000_000) -> Callable[[], Heavy]:
    """Builds a body of a million wrong items."""
    return lambda: ("/v1/embed", b'{"%b":[' % field.encode() + (value + b",") * count + b"1]}", {})


def pictures(build: Callable[[], str], count: int = 16) -> Callable[[], Heavy]:
    """Builds a request with the same picture several times."""
    return lambda: ("/v1/embed", json.dumps({"pictures": [build()] * count}).encode(), {})


def large(kind: str, side: int = 4096, **options: Any) -> Callable[[], str]:
    """Encodes a plain picture of many pixels, which takes few bytes."""

    def build() -> str:
        stream = io.BytesIO()
        Image.new("RGB", (side, side), (10, 200, 30)).save(stream, kind, **options)
        return base64.b64encode(stream.getvalue()).decode()

    return lru_cache(maxsize=1)(build)


@lru_cache(maxsize=1)
def grey_of_16_bits() -> str:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4096, 4096), np.uint16)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


@lru_cache(maxsize=1)
def tile_beyond_its_picture(side: int = 8192) -> str:
    """Builds a TIFF of 16 × 16 pixels whose one tile holds 200 MB."""
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(side * side * 3 >> 20)) + packer.flush()
    tags = [
        (256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 8), (262, 3, 2), (277, 3, 3), (322, 4, side), (323, 4, side),
        (324, 4, 8 + 2 + 10 * 12 + 4), (325, 4, len(data)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return base64.b64encode(head + data).decode()


def located(count: int = 64) -> Heavy:
    body = {"picture": large("JPEG")(), "phrases": ["a boat"] * count, "heat": True}
    return "/v1/locate", json.dumps(body).encode(), {}


HEAVY: list[Callable[[], Heavy]] = [
    values(b"1"), values(b"[]"), values(b'""'), values(b"1", "pictures"), values(b"{}", "z"), values(b'"a":1', "z"),
    lambda: ("/v1/embed", b'{"texts":["' + rb"\n" * 1_000_000 + b'"]}', {}),
    lambda: ("/v1/embed", gzip.compress(b" " * 100_000_000), {"Content-Encoding": "gzip"}),
    lambda: ("/healthz", bytes(4_000_000), {}),
    lambda: ("/", bytes(4_000_000), {}),
    pictures(large("JPEG2000")), pictures(large("JPEG", progressive=True)), pictures(large("WEBP", lossless=True)),
    pictures(grey_of_16_bits), pictures(tile_beyond_its_picture, 2), pictures(large("PNG"), 64), located,
    lambda: located(4),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.serve.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from diptych.apps.index import build_index

    with tempfile.TemporaryDirectory() as place:
        pool = ModelPool.load([save_family(Path(place) / "run")], device="cpu")
        (Path(place) / "pictures").mkdir()
        picture().save(Path(place) / "pictures" / "one.png")
        build_index(Path(place) / "index", Path(place) / "pictures", pool.find("embed").predictor)
        start = time.perf_counter()
        with running(pool, LIMITS, index=str(Path(place) / "index")) as server:
            outcome = fuzz(server, arguments.requests, arguments.seed)
    if outcome.slowest_health > SLOWEST_HEALTH:
        outcome.wrong.append(f"/healthz took {outcome.slowest_health:.2f} s")
    if outcome.memory[-1] - outcome.memory[0] > 1.25 * LIMITS.held_bytes / 2**20:
        outcome.wrong.append(f"memory grew from {outcome.memory[0]} to {outcome.memory[-1]} MiB")
    print(outcome, f"\n{time.perf_counter() - start:.0f} s in all")
    return bool(outcome.wrong)


if __name__ == "__main__":
    sys.exit(main())
