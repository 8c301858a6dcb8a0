"""Checks what a server refuses, with which status and message, while it continues to serve others."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.apps.index import Index
from diptych.apps.serve.batching import Batcher, ExpectedRequest
from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.metrics import Metrics
from diptych.apps.serve.requests import Inputs
from diptych.apps.serve.server import PASSED_OVER, Listening, check_open
from diptych.apps.web import allowed_hosts
from diptych.cli.main import main
from diptych.predict import ModelPool
from tests.serve.server_state import Running, encoded, error, picture, requests, running, wait_until

SMALL = Limits(body_bytes=20_000, held_bytes=60_000, pixels=5_000, text_length=50, items=4, pairs=6, body_seconds=0.5)
KEY = "a-key-that-is-long-enough"


@pytest.fixture(scope="module")
def small(pool: ModelPool) -> Iterator[Running]:
    with running(pool, SMALL) as server:
        yield server


def png_bomb(side: int = 50_000) -> str:
    """Builds a PNG of a few bytes whose header claims gigabytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))).decode()


def truncated_jpeg() -> str:
    return base64.b64encode(base64.b64decode(encoded(picture(), "JPEG"))[:300]).decode()


def many_scans() -> str:
    """Builds a JPEG that claims thousands of scans."""
    return base64.b64encode(base64.b64decode(encoded(picture(), "JPEG"))[:-2] + b"\xff\xda" * 1_000).decode()


GOOD = encoded(picture())
HOSTILE: list[tuple[str, Any, int, str]] = [
    ("/v1/embed", {"pictures": [truncated_jpeg()]}, 422, "bad_picture"),
    ("/v1/embed", {"pictures": [many_scans()]}, 422, "bad_picture"),
    ("/v1/embed", {"pictures": [png_bomb()]}, 413, "picture_too_large"),
    ("/v1/embed", {"pictures": [encoded(Image.new("RGB", (101, 50)))]}, 413, "picture_too_large"),
    ("/v1/embed", {"pictures": ["/etc/passwd"]}, 422, "bad_picture"),
    ("/v1/embed", {"pictures": ["http://127.0.0.1/x.png"]}, 422, "bad_picture"),
    ("/v1/embed", {"pictures": ["data:image/png;base64," + GOOD]}, 422, "bad_picture"),
    ("/v1/embed", {"pictures": [""]}, 422, "bad_picture"),
    ("/v1/embed", {"pictures": ["ü" * 8]}, 422, "bad_picture"),
    ("/v1/embed", {"pictures": [base64.b64encode(b"<svg/>").decode()]}, 422, "bad_picture"),
    ("/v1/embed", {"pictures": "one"}, 422, "bad_request"),
    ("/v1/embed", {"pictures": [3]}, 422, "bad_request"),
    ("/v1/embed", {"texts": []}, 422, "bad_request"),
    ("/v1/embed", {}, 422, "bad_request"),
    ("/v1/embed", [], 422, "bad_request"),
    ("/v1/embed", {"texts": ["a boat"], "path": "/etc/passwd"}, 422, "bad_request"),
    ("/v1/embed", {"texts": ["a boat"], "\ud800": 1}, 422, "bad_request"),
    ("/v1/embed", {"texts": ["\ud800 boat"]}, 422, "bad_request"),
    ("/v1/embed", {"texts": ["a" * 51]}, 422, "bad_text"),
    ("/v1/embed", {"texts": ["?!"]}, 422, "bad_text"),
    ("/v1/embed", {"texts": ["a boat"] * 5}, 422, "too_many"),
    ("/v1/embed", {"texts": ["a boat"], "model": "\ud800"}, 422, "bad_request"),
    ("/v1/embed", {"texts": ["a boat"], "model": "nobody"}, 404, "unknown_model"),
    ("/v1/match", {"pictures": [GOOD] * 2, "texts": ["a boat"] * 4}, 422, "too_many"),
    ("/v1/match", {"pictures": [], "texts": ["a boat"]}, 422, "bad_request"),
    ("/v1/answer", {"picture": GOOD, "questions": ["what"], "k": 0}, 422, "bad_request"),
    ("/v1/answer", {"picture": GOOD, "questions": ["what"], "k": "3"}, 422, "bad_request"),
    ("/v1/answer", {"picture": GOOD, "questions": ["what"], "answers": [""]}, 422, "refused"),
    ("/v1/locate", {"picture": GOOD, "phrases": ["a"], "proposals": [[0, 0, 0, 5]]}, 422, "bad_request"),
    ("/v1/locate", {"picture": GOOD, "phrases": ["a"], "proposals": [[0, 0, 1]]}, 422, "bad_request"),
    ("/v1/locate", {"picture": GOOD, "phrases": ["a"], "proposals": [[5000, 0, 1, 1]]}, 422, "bad_request"),
    ("/v1/locate", {"picture": GOOD, "phrases": ["a"], "proposals": [[0, 0, float("nan"), 1]]}, 422, "bad_request"),
    ("/v1/search", {"text": "a boat"}, 409, "no_index"),
    ("/v1/search", {"text": "a boat", "picture": GOOD}, 422, "bad_request"),
    ("/v1/nothing", {}, 404, "unknown_path"),
    ("/v1/embed/more", {}, 404, "unknown_path"),
]


@pytest.mark.parametrize(("path", "body", "status", "code"), HOSTILE)
def test_invalid_requests_get_the_right_status_and_code(
    path: str, body: Any, status: int, code: str, small: Running
) -> None:
    headers = {"Content-Type": "application/json"}
    response = small.post(path, content=json.dumps(body).encode(), headers=headers)
    assert (response.status_code, error(response)) == (status, code), response.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 19_000,
        b'{"texts": ' + b"9" * 10_000 + b"}",
        b"nul",
        b'{"a": 1} x',
        b'"\xed\xa0\x80"',
    ],
)
def test_a_body_that_is_not_json_is_an_error(body: bytes, small: Running) -> None:
    response = small.post("/v1/embed", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert (response.status_code, error(response)) in {(400, "bad_json"), (422, "too_many"), (422, "bad_request")}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_content_types_that_a_web_page_may_send_across_origins_are_refused(kind: str, small: Running) -> None:
    response = small.post("/v1/embed", content=b'{"texts": ["a boat"]}', headers={"Content-Type": kind})
    assert (response.status_code, error(response)) == (415, "not_json")
    assert "access-control-allow-origin" not in response.headers


def test_another_method_and_another_host_are_refused(small: Running) -> None:
    assert error(small.get("/v1/embed")) == "wrong_method"
    response = small.get("/v1/models", headers={"Host": "elsewhere.example"})
    assert (response.status_code, error(response)) == (421, "wrong_host")
    assert small.get("/v1/models", headers={"Host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize("with_length", [True, False], ids=["by Content-Length", "by counting"])
def test_a_body_too_large_is_refused(with_length: bool, small: Running) -> None:
    def parts() -> Iterator[bytes]:
        yield from [b" " * 1_000] * 21

    content: Any = b" " * 21_000 if with_length else parts()
    response = small.post("/v1/embed", content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, error(response)) == (413, "body_too_large")


def head(length: int, path: str = "/v1/embed") -> bytes:
    kind = "Content-Type: application/json"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {length}\r\n\r\n".encode()


def test_an_endless_body_ends_with_the_connection(small: Running) -> None:
    assert b" 413 " in small.raw(head(10**12) + b" " * 45_000).partition(b"\r\n")[0]


def test_a_slow_body_times_out(small: Running) -> None:
    assert b" 408 " in small.raw(head(100) + b"{").partition(b"\r\n")[0]
    wait_until(lambda: small.admission.in_flight == 0)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/em", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"])
def test_a_slow_head_ends_the_connection(sent: bytes, small: Running) -> None:
    answered = small.raw(sent, seconds=8)
    assert answered.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")


def test_a_request_that_is_not_http_gets_an_error_of_the_same_shape(small: Running) -> None:
    answered = small.raw(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 400")
    assert json.loads(answered.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_http"


def test_only_paths_that_reveal_nothing_need_no_key(pool: ModelPool) -> None:
    with running(pool, key=KEY) as locked:
        body, right = {"texts": ["a boat"]}, {"Authorization": f"Bearer {KEY}"}
        for wrong in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": KEY},
            {"Authorization": "Bearer ÿ".encode()},
        ):
            refused = locked.post("/v1/embed", body, headers=wrong)
            assert (refused.status_code, error(refused)) == (401, "no_key")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert locked.post("/v1/embed", body, headers=right).status_code == 200
        assert locked.get("/metrics").status_code == 401
        assert locked.get("/v1/models", headers=right).status_code == 200
        assert locked.get("/healthz").status_code == 200
        assert pool.models[0].name not in locked.get("/openapi.json").text


@pytest.mark.parametrize(
    ("host", "key", "without", "words"),
    [
        ("0.0.0.0", None, False, "can be reached from other machines"),
        ("example.org", None, False, "can be reached from other machines"),
        ("127.0.0.1", "short", False, "16 or more printable"),
        ("0.0.0.0", "ü" * 20, False, "16 or more printable"),
    ],
)
def test_other_machines_need_a_key(host: str, key: str | None, without: bool, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_open(host, key, without)
    for fine in (("0.0.0.0", KEY, False), ("0.0.0.0", None, True), ("::1", None, False), ("localhost", None, False)):
        check_open(*fine)
    assert allowed_hosts("0.0.0.0", []) is None
    assert "mine.example" in (allowed_hosts("127.0.0.1", ["Mine.example"]) or ())


def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen at 127.0.0.1" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert main(["serve", str(tmp_path), "--batch", "0"]) == 2
    assert "batch is 0: a limit must be above 0" in capsys.readouterr().err


# --------------------------------------------------------------------------- waiting, and giving up


class BlockedCall:
    """A model call that blocks until it is released, and fails for a request with the text `bad`."""

    ability = "embed"

    def __init__(self) -> None:
        self.started, self.release, self.batch_sizes = threading.Event(), threading.Event(), list[int]()

    def rows(self, inputs: Inputs) -> int:
        return 1

    def __call__(self, inputs: Sequence[Inputs]) -> list[str]:
        self.started.set()
        self.release.wait(20)
        self.batch_sizes.append(len(inputs))
        if any("bad" in request.texts for request in inputs):
            raise ValueError("a bad one")
        return [request.texts[0] for request in inputs]


class OccupiedModels:
    """Occupies a server's models' thread until the block ends."""

    def __init__(self, running: Running) -> None:
        self.state, self.call = running.state, BlockedCall()

    def __enter__(self) -> BlockedCall:
        async def ask() -> Any:
            return await self.state.batcher.submit(self.call, Inputs(texts=("x",)), ExpectedRequest(self.state.batcher))

        self.thread = threading.Thread(target=lambda: asyncio.run(ask()), daemon=True)
        self.thread.start()
        assert self.call.started.wait(20)
        return self.call

    def __exit__(self, *_: object) -> None:
        self.call.release.set()
        self.thread.join(20)


def test_a_bad_request_does_not_fail_others_in_its_batch() -> None:
    batcher, blocked = Batcher(Limits(wait_ms=0.0), Metrics()), BlockedCall()

    async def ask() -> list[Any]:
        texts = ["first", "one", "bad", "two"]
        jobs = [
            asyncio.ensure_future(batcher.submit(blocked, Inputs(texts=(text,)), ExpectedRequest(batcher)))
            for text in texts
        ]
        await asyncio.sleep(0.1)
        blocked.release.set()
        return await asyncio.gather(*jobs, return_exceptions=True)

    *fine, last = sorted(asyncio.run(ask()), key=lambda one: isinstance(one, Exception))
    batcher.close(5.0)
    assert fine == ["first", "one", "two"]
    assert str(last) == "a bad one"
    assert max(blocked.batch_sizes) > 1, "they were never together"
    with pytest.raises(ApiError, match="being stopped"):
        asyncio.run(batcher.submit(blocked, Inputs(texts=("late",)), ExpectedRequest(batcher)))


def test_searches_of_all_clients_are_one_call_whatever_they_ask_for(
    pool: ModelPool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    search = Index.search_many

    def noting(self: Index, queries: Sequence[Any], *options: Any) -> Any:
        seen.append(len(queries))
        return search(self, queries, *options)

    monkeypatch.setattr(Index, "search_many", noting)
    bodies = [{"text": f"a boat{' and a fox' * k}", "k": k} for k in range(1, 6)]
    bodies[1] = {"picture": encoded(picture(1)), "k": 2}
    with running(pool, index=str(photos)) as served, ThreadPoolExecutor(5) as clients:
        with OccupiedModels(served):
            asked = [clients.submit(served.post, "/v1/search", body) for body in bodies]
            wait_until(lambda: len(served.state.batcher._waiting) == 5)
        answers = [one.result() for one in asked]
    assert seen == [5]
    assert [len(one.json()["hits"]) for one in answers] == [1, 2, 3, 4, 5]


def test_a_full_queue_answers_429_with_retry_after(pool: ModelPool) -> None:
    with running(pool, Limits(queue=3)) as full, ThreadPoolExecutor(3) as clients:
        with OccupiedModels(full):
            accepted = [clients.submit(full.post, "/v1/embed", {"texts": ["a boat"]}) for _ in range(3)]
            wait_until(lambda: full.admission.in_flight == 3)
            refused = full.post("/v1/embed", {"texts": ["a boat"]})
            assert (refused.status_code, error(refused)) == (429, "busy")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert full.get("/healthz").status_code == 200
        assert [one.result().status_code for one in accepted] == [200, 200, 200]


def test_late_requests_time_out_and_are_dropped_if_no_model_began_them(pool: ModelPool) -> None:
    with running(pool, Limits(seconds=2.0)) as slow:
        with OccupiedModels(slow):
            late = slow.post("/v1/embed", {"texts": ["a boat"]})
            assert (late.status_code, error(late)) == (504, "timed_out")
            assert not slow.state.batcher._waiting
            assert slow.state.metrics.dropped._value.get() == 1
        wait_until(lambda: slow.admission.in_flight == 0)


def test_requests_of_clients_that_left_are_dropped(served: Running) -> None:
    body = json.dumps({"texts": ["a boat"]}).encode()
    before = served.counted().get(("/v1/embed", "499"), 0)
    with OccupiedModels(served):
        with socket.create_connection(("127.0.0.1", served.port)) as leaving:
            leaving.sendall(head(len(body)) + body)
            wait_until(lambda: len(served.state.batcher._waiting) == 1)
        wait_until(lambda: not served.state.batcher._waiting)
        wait_until(lambda: served.counted().get(("/v1/embed", "499"), 0) == before + 1)


def test_the_bodies_of_all_open_requests_are_bounded(pool: ModelPool) -> None:
    limits = Limits(body_bytes=20_000, held_bytes=25_000)
    with running(pool, limits) as full, socket.create_connection(("127.0.0.1", full.port)) as slow:
        slow.sendall(head(20_000) + b" " * 19_000)
        wait_until(lambda: full.admission._held_bytes == 19_000)
        response = full.post("/v1/embed", content=b" " * 19_000, headers={"Content-Type": "application/json"})
        assert (response.status_code, error(response)) == (429, "busy")


def test_an_internal_error_reveals_nothing(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(served.state, "find", fail)
    response = served.post("/v1/embed", {"texts": ["a boat"]})
    assert (response.status_code, error(response)) == (500, "failed")
    assert "secret" not in response.text


def test_stopping_finishes_accepted_requests_and_refuses_new_ones(pool: ModelPool) -> None:
    with running(pool) as ending, ThreadPoolExecutor(1) as clients:
        with OccupiedModels(ending), ending.client() as client:
            assert client.get("/healthz").json() == {"live": True, "ready": True}
            accepted = clients.submit(ending.post, "/v1/embed", {"texts": ["a boat"]})
            wait_until(lambda: ending.admission.in_flight == 1)
            ending.server.stop()
            late = client.post("/v1/embed", json={"texts": ["a boat"]})
            assert (late.status_code, error(late)) == (503, "stopping")
            assert client.get("/healthz").status_code == 503
        assert accepted.result().status_code == 200
        ending.thread.join(20)
        assert not ending.thread.is_alive()


def test_a_waiting_picture_has_the_models_size(served: Running) -> None:
    image = Image.new("RGB", (1000, 1000))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    with ThreadPoolExecutor(1) as clients, OccupiedModels(served):
        body = {"pictures": [base64.b64encode(stream.getvalue()).decode()]}
        answer = clients.submit(served.post, "/v1/embed", body)
        wait_until(lambda: len(served.state.batcher._waiting) == 1)
        assert served.state.batcher._waiting[0].inputs.pictures[0].size == (16, 16)
    assert answer.result().status_code == 200


def test_metrics_count_what_clients_saw(served: Running) -> None:
    before = served.counted()
    for body in ({"texts": ["a boat"]}, {"texts": []}, {"texts": ["?"]}):
        served.post("/v1/embed", body)
    served.get("/anything/else")
    after = served.counted()
    grown = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert grown == {("/v1/embed", "200"): 1, ("/v1/embed", "422"): 2, ("other", "404"): 1}
    assert 'diptych_requests_total{endpoint="other",status="404"}' in served.get("/metrics").text


def test_the_tests_have_a_request_for_every_endpoint(served: Running) -> None:
    posts = {path for path, methods in served.get("/openapi.json").json()["paths"].items() if "post" in methods}
    assert posts == requests().keys()


# --------------------------------------------------------------------------- connections that wait to be accepted


@pytest.fixture
def listening() -> Iterator[Listening]:
    with Listening(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        yield listening


def connect(listening: Listening, reset: bool = False) -> socket.socket:
    """Connects. A client that resets its connection has left before it is accepted."""
    client = socket.create_connection(listening.getsockname(), timeout=2)
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    return client


def test_a_burst_of_connections_is_kept_until_it_is_accepted(listening: Listening) -> None:
    clients = [connect(listening) for _ in range(4 * PASSED_OVER)]  # with a full queue, one waits for a second or more
    accepted = [listening.accept()[0] for _ in clients]
    for connection in (*clients, *accepted):
        connection.close()


def test_clients_that_broke_off_do_not_hold_up_those_behind_them(listening: Listening) -> None:
    for _ in range(PASSED_OVER - 1):
        connect(listening, reset=True)
    with connect(listening) as client:
        connection, address = listening.accept()
        with connection:
            assert address == client.getsockname()
    for _ in range(PASSED_OVER + 1):  # so many at once give others a turn
        connect(listening, reset=True)
    with connect(listening) as client:
        with pytest.raises(BlockingIOError):
            listening.accept()
        connection, address = listening.accept()
        with connection:
            assert address == client.getsockname()
