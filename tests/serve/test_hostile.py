"""Checks that one hostile client costs little and does not keep the server from others."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from diptych.apps.serve import server as serving
from diptych.apps.serve.admission import AdmissionMiddleware, Exchange
from diptych.apps.serve.batching import Batcher
from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.metrics import Metrics
from diptych.apps.serve.pictures import DRAWN, DRAWN_IN_FULL, HeatCanvas, charge_upload
from diptych.apps.serve.reading import read_request
from diptych.apps.serve.schemas import EmbedRequest
from diptych.apps.serve.workers import Work, WorkEnded, Workers
from diptych.apps.web import OncePerSecond
from diptych.predict import ModelPool
from tests.serve.server_state import Running, encoded, error, picture, running, wait_until

# --------------------------------------------------------------------------- JSON

COUNT = 1_000_000
WRONG_ITEMS = {
    "numbers": b'{"texts":[' + b"1," * COUNT + b"1]}",
    "lists": b'{"texts":[' + b"[]," * COUNT + b"1]}",
    "pictures": b'{"pictures":[' + b"1," * COUNT + b"1]}",
    "unknown keys": b"{" + b",".join(b'"%x":1' % number for number in range(COUNT // 4)) + b"}",
    "empty texts": b'{"texts":[' + b'"",' * COUNT + b'""]}',
    "an unknown list": b'{"z":[' + b"{}," * COUNT + b"1]}",
    "brackets": b"[" * COUNT,
    "escapes": b'{"texts":["' + rb"\n" * COUNT + b'"]}',
    "UTF-16": ('{"texts":[' + "1," * COUNT + "1]}").encode("utf-16"),
}


@pytest.mark.parametrize("kind", WRONG_ITEMS)
def test_a_body_of_a_million_values_is_refused_before_it_is_parsed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("it was parsed"))
    start = time.thread_time()
    with pytest.raises(ApiError) as refused:
        read_request(WRONG_ITEMS[kind], EmbedRequest, Limits())
    assert refused.value.code == "too_many"
    assert time.thread_time() - start < 1


def test_commas_in_texts_are_not_values() -> None:
    body = json.dumps({"texts": [',[{"\\' * 400] * 64}).encode()
    assert len(read_request(body, EmbedRequest, Limits()).texts) == 64


def test_validation_ends_at_the_first_wrong_item() -> None:
    with pytest.raises(ApiError, match=r"^texts\[0\]: input should be a valid string$"):
        read_request(b'{"texts": [1, 2, 3, 4]}', EmbedRequest, Limits())


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Holds back the reading of a body: the first event says that it has begun, the second lets it go on."""
    reading, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        reading.set()
        assert go_on.wait(20)
        return read_request(*arguments)

    monkeypatch.setattr("diptych.apps.serve.app.read_request", slow)
    return reading, go_on


def test_others_are_answered_while_bodies_are_read(
    served: Running, held: tuple[threading.Event, threading.Event]
) -> None:
    reading, go_on = held
    thread = threading.Thread(target=served.post, args=("/v1/embed", {"texts": ["a boat"]}))
    thread.start()
    assert reading.wait(20)
    assert served.get("/healthz").status_code == 200
    go_on.set()
    thread.join(20)


# --------------------------------------------------------------------------- work


def test_the_pictures_of_a_request_have_a_budget_together() -> None:
    work = Work(Limits(pixels=1_000, request_pixels=2_500))
    sent = encoded(Image.new("RGB", (30, 30)))
    assert charge_upload(sent, "first", work) == charge_upload(sent, "second", work) == (30, 30)
    with pytest.raises(ApiError, match="third: with it the request costs more than 2,500 pixels"):
        charge_upload(sent, "third", work)
    with pytest.raises(ApiError, match=r"large: .*1,000"):
        charge_upload(encoded(Image.new("RGB", (40, 40))), "large", Work(Limits(pixels=1_000, request_pixels=2_500)))


def test_a_jpeg_of_many_scans_costs_more() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (30, 30)).save(stream, "JPEG", progressive=True)
    raw = stream.getvalue()
    usual, many = Work(Limits()), Work(Limits())
    charge_upload(base64.b64encode(raw).decode(), "usual", usual)
    comment = b"\xff\xfe\x00\x52" + b"\xff\xda" * 40  # counted as scans, and cheap to decode
    charge_upload(base64.b64encode(raw[:2] + comment + raw[2:]).decode(), "many", many)
    assert Limits().request_pixels - usual.pixels_left == 900
    assert Limits().request_pixels - many.pixels_left >= 4 * 900


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("embed", {"pictures": [encoded(picture(1, (40, 40)))] * 6}),
        ("match", {"pictures": [encoded(picture(1, (40, 40)))] * 6, "texts": ["a boat"]}),
        ("embeddings", {"input": [{"image": encoded(picture(1, (40, 40)))}] * 6}),
        ("locate", {"picture": encoded(picture(1, (40, 40))), "phrases": ["a boat"] * 6}),
    ],
)
def test_a_request_that_costs_too_much_decodes_nothing(
    path: str, body: dict[str, Any], pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with running(pool, Limits(request_pixels=9_000)) as small:
        response = small.post(f"/v1/{path}", body)
    assert (response.status_code, error(response)) == (413, "picture_too_large")


@pytest.mark.parametrize("raw", [b"P3 1 1 255\n1 2 3\n", b"P2 1 1 255\n7\n", b"P6 1 1 65535\n" + bytes(6)])
def test_what_pillow_decodes_in_python_is_not_decoded(raw: bytes, served: Running) -> None:
    response = served.post("/v1/embed", {"pictures": [base64.b64encode(raw).decode()]})
    assert (response.status_code, error(response)) == (422, "bad_picture")
    assert "send JPEG or PNG" in response.text


@pytest.mark.parametrize(
    "raw", [encoded(picture(), "JPEG2000"), base64.b64encode(b"\xff\x4f\xff\x51" + bytes(9)).decode()]
)
def test_jpeg2000_is_not_decoded(raw: str, served: Running) -> None:
    response = served.post("/v1/embed", {"pictures": [raw]})
    assert (response.status_code, error(response)) == (422, "bad_picture")
    assert "JPEG2000" in response.text


def test_phrases_in_a_picture_cost_its_pixels_each(pool: ModelPool) -> None:
    with running(pool, Limits(request_pixels=10_000)) as small:
        sent = encoded(Image.new("RGB", (40, 40)))
        assert small.post("/v1/locate", {"picture": sent, "phrases": ["a boat"] * 5}).status_code == 200
        refused = small.post("/v1/locate", {"picture": sent, "phrases": ["a boat"] * 6})
        assert (refused.status_code, error(refused)) == (413, "picture_too_large")


def test_many_heat_maps_are_drawn_smaller() -> None:
    sent = encoded(Image.new("RGB", (2 * DRAWN, DRAWN)))
    assert HeatCanvas(sent, "picture", DRAWN_IN_FULL, Work(Limits()))._picture.size == (DRAWN, DRAWN // 2)
    assert HeatCanvas(sent, "picture", 4 * DRAWN_IN_FULL, Work(Limits()))._picture.size == (DRAWN // 2, DRAWN // 4)


def test_work_ends_when_nobody_waits_for_it_or_the_server_stops() -> None:
    workers = Workers(1, "test", Limits())
    ended: list[str] = []

    async def start(end: Callable[[asyncio.Task[None]], object]) -> None:
        begun = threading.Event()

        def pictures(work: Work) -> None:
            begun.set()
            try:
                while True:
                    work.go_on()
                    time.sleep(0.001)
            except WorkEnded:
                ended.append("ended")
                raise

        task = asyncio.ensure_future(workers.run(pictures))
        await asyncio.to_thread(begun.wait, 20)
        end(task)
        with pytest.raises((asyncio.CancelledError, WorkEnded)):
            await task

    asyncio.run(start(lambda task: task.cancel()))
    asyncio.run(start(lambda task: workers.close()))
    for thread in workers._threads:
        thread.join(20)
        assert not thread.is_alive()
        assert thread.daemon, "the process would wait for it"
    assert ended == ["ended", "ended"]


def test_a_decoder_that_does_not_end_costs_one_request_its_answer(
    pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def slow(content: str, name: str, work: Work) -> Image.Image:
        work.go_on()
        opened.append(name)
        time.sleep(0.3)
        return picture()

    monkeypatch.setattr("diptych.apps.serve.preparing.open_upload", slow)
    with running(pool, Limits(seconds=1.0)) as server:
        late = server.post("/v1/embed", {"pictures": [encoded(picture())] * 64})
        assert (late.status_code, error(late)) == (504, "timed_out")
        time.sleep(0.5)
        count = len(opened)
        time.sleep(0.7)
        assert len(opened) == count < 64, "the work went on"


@pytest.mark.parametrize("number", [1e308, -1e308, 1e-320])
@pytest.mark.parametrize("place", range(4))
def test_proposals_beyond_any_picture_are_refused(number: float, place: int, served: Running) -> None:
    box = [1.0, 1.0, 2.0, 2.0]
    box[place] = number
    response = served.post("/v1/locate", {"picture": encoded(picture()), "phrases": ["a boat"], "proposals": [box]})
    assert response.status_code == 200 if place < 2 and abs(number) < 1 else error(response) == "bad_request"


# --------------------------------------------------------------------------- bodies and answers


@pytest.mark.parametrize("line", ["GET /healthz", "POST /healthz", "PUT /", "POST /v1/nothing", "GET /v1/embed"])
def test_a_body_that_nobody_takes_is_not_kept(line: str, pool: ModelPool) -> None:
    with running(pool, Limits(body_seconds=8.0)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
            slow.sendall(f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000000\r\n\r\n".encode())
            for _ in range(8):
                slow.sendall(bytes(500_000))
            assert server.admission._held_bytes <= 1_000
            (connection,) = server.server.server_state.connections
            assert len(connection.cycle.body) <= 200_000
            answer = slow.recv(100)
        assert answer.split()[1] in (b"200", b"404", b"405")


async def nothing(*_: Any) -> None:
    """Stands for an application and for a channel that are not used."""


def test_a_refused_body_is_let_go_before_it_is_answered() -> None:
    batcher = Batcher(Limits(), Metrics())
    limits = Limits(body_bytes=10_000)
    admission = AdmissionMiddleware(nothing, limits, Metrics(), batcher, {"/v1/embed": ["post"]})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(4_000), "more_body": True}

    scope = {"type": "http", "path": "/v1/embed", "headers": [(b"transfer-encoding", b"chunked")]}
    with pytest.raises(ApiError) as refused:
        asyncio.run(admission._read_body(Exchange(scope, receive, nothing, True)))
    batcher.close(5.0)
    frame = refused.value.__traceback__
    while frame is not None:
        for value in frame.tb_frame.f_locals.values():
            assert not (isinstance(value, bytearray) and len(value) > 100)
        frame = frame.tb_next


@pytest.fixture
def talkative(pool: ModelPool) -> Iterator[Running]:
    """A server that answers with 30 MB, which must be taken within a second."""
    with running(pool, Limits(answer_seconds=1.0)) as server:

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"30000000")]})
            await send({"type": "http.response.body", "body": bytes(30_000_000)})

        server.admission.app = answer
        yield server


def test_an_answer_that_nobody_reads_is_counted_and_then_dropped(talkative: Running) -> None:
    with socket.create_connection(("127.0.0.1", talkative.port)) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: talkative.admission._held_bytes == 30_000_000)
        (connection,) = talkative.server.server_state.connections
        assert connection.transport.get_write_buffer_size() < 1_000_000
        wait_until(lambda: not talkative.server.server_state.connections)
        wait_until(talkative.is_idle)


def test_the_end_of_an_answer_that_nobody_reads_is_dropped_too(pool: ModelPool) -> None:
    with running(pool, Limits(answer_seconds=1.0)) as server:

        class Stuck:
            aborted = False

            def get_write_buffer_size(self) -> int:
                return 1

            def abort(self) -> None:
                Stuck.aborted = True

        with socket.create_connection(("127.0.0.1", server.port)):
            wait_until(lambda: bool(server.server.server_state.connections))
            (connection,) = server.server.server_state.connections
            known, connection.transport = connection.transport, Stuck()
            connection._abort_unread()
            connection.transport = known
        assert Stuck.aborted


def test_an_answer_that_is_read_arrives_whole(talkative: Running) -> None:
    talkative.server._limits = Limits()
    assert len(talkative.get("/healthz").content) == 30_000_000


# --------------------------------------------------------------------------- connections and the log


def test_connections_that_ask_nothing_make_room_for_others(pool: ModelPool) -> None:
    with running(pool, Limits(connections=8)) as server:
        place = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        idle = [socket.create_connection(place, timeout=20) for _ in range(30)]
        idle[-1].sendall(b"GET /healthz HTTP/1.1\r\nX: ")  # a head that does not end
        for _ in range(3):
            assert server.post("/v1/embed", {"texts": ["a boat"]}).status_code == 200
        assert len(server.server.server_state.connections) <= 8
        assert closed(idle[0])
        for connection in idle:
            connection.close()


def test_few_connections_of_a_flood_are_accepted_before_others_get_their_turn(pool: ModelPool) -> None:
    with running(pool) as server:
        assert server.server.config.backlog <= 8  # as many as asyncio accepts at a time


def test_a_connection_whose_request_is_answered_is_not_idle(
    pool: ModelPool, held: tuple[threading.Event, threading.Event]
) -> None:
    reading, go_on = held
    with running(pool, Limits(connections=4)) as server:
        statuses: list[int] = []
        asking = threading.Thread(
            target=lambda: statuses.append(server.post("/v1/embed", {"texts": ["a boat"]}).status_code)
        )
        asking.start()
        assert reading.wait(20)
        place = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        idle = [socket.create_connection(place, timeout=20) for _ in range(12)]
        assert closed(idle[0])
        go_on.set()
        asking.join(20)
        assert statuses == [200]
        for connection in idle:
            connection.close()


def closed(connection: socket.socket) -> bool:
    """Says whether the server has closed a connection, or will within its timeout."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_there_are_no_more_connections_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, 4_096))
    assert 500 < serving.most_connections(10_000) < 1_024 - serving.BACKLOG
    assert serving.most_connections(20) == 20
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert serving.most_connections(10_000) == 10_000


def test_problems_of_the_event_loop_are_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    tell = OncePerSecond(logging.getLogger("diptych.test"))
    loop = asyncio.new_event_loop()
    for _ in range(1_000):
        tell(
            loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
        )
    loop.close()
    assert len(caplog.records) == 1
    assert "Traceback" not in caplog.text
