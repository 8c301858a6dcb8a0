"""Checks that hostile input does no harm and is answered with a message."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from diptych.apps.app import guard
from diptych.apps.app.fields import MOST_BYTES, MOST_LETTERS, PictureField, TextField
from diptych.apps.app.server import KEPT
from diptych.apps.web import LONGEST_LOG
from tests.app.conftest import App, Visitor, serve_runs

SCRIPT = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(2)</script></svg>'
MARKUP = "<img src=x onerror=alert(3)>"


def png_of(width: int, height: int) -> bytes:
    """Builds a PNG whose header claims a size, and that has hardly any content."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


HOSTILE: dict[str, tuple[bytes, str]] = {
    "words.png": (b"these are words", "words.png: not a picture"),
    "empty.png": (b"", "empty.png: picture empty"),
    "broken.png": (png_of(40, 30), "broken.png: picture "),
    "bomb.png": (png_of(60_000, 60_000), "bomb.png: picture too large"),
    "large.png": (png_of(12_000, 9_000), "large.png: picture too large (12000 × 9000 pixels; --largest-pixels allows"),
    "script.svg": (SCRIPT, "script.svg: not a picture"),
    f"{MARKUP}.png": (SCRIPT, f"{MARKUP}.png: not a picture"),
}
"""The content of each file, and the message about it."""


def test_files_that_are_not_pictures_get_a_message_and_the_page_goes_on_working(visitor: Visitor, app: App) -> None:
    page = visitor.open("locate")
    page.get_by_label("Phrase").fill("a boat")
    for name, (content, expected) in HOSTILE.items():
        sent = {"name": name, "mimeType": "image/png", "buffer": content}
        page.locator("input[type=file]").set_input_files(sent)
        page.locator(".message p").filter(has_text=expected).wait_for()
        assert "/tmp" not in visitor.message()
        page.get_by_label("Remove Image").click()
    page.locator("input[type=file]").set_input_files(app.site.album.pictures[0].picture)
    page.locator(".picture-field img").wait_for()
    page.get_by_role("button", name="Where is it?").click()
    assert "a boat" in visitor.answer().inner_text()


def test_markup_in_words_is_shown_as_words(visitor: Visitor) -> None:
    page = visitor.open("")
    text = f"{MARKUP} ${{1 + 1}} {{{{value}}}} a boat"
    page.get_by_label("Words").fill(text)
    page.get_by_role("button", name="Search", exact=True).click()
    assert text in visitor.answer().inner_text()
    assert visitor.answer().locator("img[src=x]").count() == 0


# --------------------------------------------------------------------------- without a browser


@pytest.fixture
def client(app: App) -> Any:
    with httpx.Client(base_url=app.address, timeout=20) as client:
        yield client


def ask(client: httpx.Client, app: App, button: str, data: list[Any]) -> dict[str, Any]:
    """Asks through Gradio's protocol without a browser, and returns the last event."""
    dependency = next(
        one
        for one in app.blocks.config["dependencies"]
        if any(app.blocks.blocks[target].value == button for target, event in one["targets"] if event == "click")
    )
    body = {
        "data": data,
        "fn_index": dependency["id"],
        "session_hash": "somebody",
        "event_data": None,
        "trigger_id": None,
    }
    client.post("/gradio_api/queue/join", json=body).raise_for_status()
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "somebody"}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:") and '"process_completed"' in line:
                event: dict[str, Any] = json.loads(line.removeprefix("data:"))
                return event
    raise AssertionError("no answer")


@pytest.mark.parametrize("path", ["/etc/passwd", "{run}/eval.json", "{run}/pictures/0.png", "{here}"])
def test_no_file_of_the_server_can_be_fetched(client: httpx.Client, families: list[Path], path: str) -> None:
    named = path.format(run=families[0], here=Path(__file__))
    assert Path(named).exists()
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
        assert client.get(f"{route}{named}").status_code in (403, 404)


@pytest.mark.parametrize("path", ["/etc/passwd", "{run}/pictures/0.png", "{address}/theme.css"])
def test_a_path_or_an_address_that_a_client_names_is_not_read(
    client: httpx.Client, app: App, families: list[Path], path: str
) -> None:
    named = path.format(run=families[0], address=app.address)
    sent = {"path": named, "url": None, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    name = app.site.pool.able("match")[0].name
    answer = ask(client, app, "Does it fit?", [name, sent, "a boat"])
    assert answer["success"] is False
    assert "root:" not in json.dumps(answer)
    assert "Traceback" not in json.dumps(answer)


def test_a_url_of_another_host_is_not_even_looked_up(
    client: httpx.Client, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[Any] = []
    known = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: looked_up.append(host) or known(host, *rest, **more)
    )
    sent = {"path": "http://pictures.example/a.png", "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    answer = ask(client, app, "Does it fit?", [app.site.pool.able("match")[0].name, sent, "a boat"])
    assert answer["success"] is False
    assert "pictures.example" not in looked_up


def test_an_upload_that_is_too_large_is_refused_while_it_arrives(client: httpx.Client) -> None:
    files = {"files": ("a.png", b"\0" * (MOST_BYTES + 1), "image/png")}
    assert client.post("/gradio_api/upload", files=files).status_code == 413


def test_a_text_that_is_too_long_gets_a_message(client: httpx.Client, app: App, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    files = {"files": ("a.png", (tmp_path / "a.png").read_bytes(), "image/png")}
    (place,) = client.post("/gradio_api/upload", files=files).json()
    sent = {"path": place, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    name = app.site.pool.able("match")[0].name
    answer = ask(client, app, "Does it fit?", [name, sent, "a" * (MOST_LETTERS + 1)])
    assert "write at most 2,000" in answer["output"]["data"][0]
    answer = ask(client, app, "Does it fit?", ["no such model", sent, "a boat"])
    assert "no model 'no such model' here" in answer["output"]["data"][0].lower().replace("&#39;", "'")


def test_models_answer_one_request_at_a_time_and_no_endpoint_is_public(client: httpx.Client, app: App) -> None:
    functions = list(app.blocks.fns.values())
    assert len(functions) > 30
    assert all(one.api_visibility == "private" for one in functions)
    assert {one.concurrency_id for one in functions if one.queue} == {"models"}
    assert {one.concurrency_limit for one in functions if one.queue} == {1}
    assert client.get("/gradio_api/info").json()["named_endpoints"] == {}


def test_what_is_uploaded_is_deleted_in_time(app: App) -> None:
    assert app.blocks.delete_cache == KEPT
    assert max(KEPT) <= 3600


def test_pages_name_no_other_host(client: httpx.Client) -> None:
    theme = client.get("/theme.css").text
    assert "http" not in theme.replace("xmlns='http://www.w3.org/2000/svg'", "")
    page = client.get("/match").text
    assert "fonts.googleapis" not in page
    assert "//cdn" not in page


# --------------------------------------------------------------------------- foreign pages, floods


def question(app: App, session: str, words: object = "a boat") -> dict[str, Any]:
    """Builds a question to the search page, in Gradio's protocol."""
    dependency = next(
        one
        for one in app.blocks.config["dependencies"]
        if any(app.blocks.blocks[target].value == "Search" and event == "click" for target, event in one["targets"])
    )
    kinds = [type(app.blocks.blocks[number]).__name__ for number in dependency["inputs"]]
    data = [app.site.pool.able("embed")[0].name] if kinds[0] == "Dropdown" else []
    return {"data": [*data, words, None, ""], "fn_index": dependency["id"], "session_hash": session}


@pytest.mark.parametrize("path", ["/config", "/", "/theme.css"])
def test_a_foreign_name_for_this_machine_is_not_answered(client: httpx.Client, path: str) -> None:
    for host in ("evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example"):
        assert client.get(path, headers={"Host": host}).status_code == 421
    assert client.get(path, headers={"Host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1.evil.example"]
)
def test_a_page_of_another_server_can_neither_ask_nor_upload(client: httpx.Client, app: App, origin: str) -> None:
    headers = {"Origin": origin}
    assert client.post("/gradio_api/queue/join", json=question(app, "x"), headers=headers).status_code == 403
    files = {"files": ("a.png", png_of(8, 8), "image/png")}
    assert client.post("/gradio_api/upload", files=files, headers=headers).status_code == 403
    assert client.get("/config", headers={"Origin": app.address}).status_code == 200


def test_a_large_form_is_refused_while_it_arrives(client: httpx.Client, app: App) -> None:
    large = json.dumps(question(app, "large", "a" * guard.MOST_FORM_BYTES)).encode()
    parts = (large[start : start + 65_536] for start in range(0, len(large), 65_536))
    for content in (large, parts):
        response = client.post("/gradio_api/queue/join", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413


def test_uploads_together_are_bounded(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def upload(number: int) -> int:
        files = {"files": ("a.png", bytes([number]) * 100_000, "image/png")}
        return client.post("/gradio_api/upload", files=files).status_code

    monkeypatch.setattr(guard, "UPLOADED", guard._bytes_in(Path(os.environ["GRADIO_TEMP_DIR"])) + 250_000)
    assert [upload(number) for number in range(4)] == [200, 200, 507, 507]


def test_answers_that_nobody_fetches_are_refused_and_dropped(
    client: httpx.Client, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "UNREAD_SECONDS", 0.4)
    statuses = [
        client.post("/gradio_api/queue/join", json=question(app, "nobody")).status_code
        for _ in range(guard.MOST_OF_A_SESSION + 2)
    ]
    assert statuses == [200] * guard.MOST_OF_A_SESSION + [503] * 2
    queue = app.blocks._queue
    end = time.monotonic() + 60  # an earlier sweep may still wait for its time
    while "nobody" in queue.pending_messages_per_session or "nobody" in queue.pending_event_ids_session:
        assert time.monotonic() < end, "the answers stay"
        time.sleep(0.05)
    assert client.post("/gradio_api/queue/join", json=question(app, "nobody")).status_code == 200


def test_a_malformed_question_writes_little_into_the_log(
    client: httpx.Client, app: App, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    body = question(app, "odd", ["a" * 900_000])
    client.post("/gradio_api/queue/join", json={**body, "data": "a" * 900_000})
    client.post("/gradio_api/queue/join", json={**body, "data": {"a" * 900_000: 1}})
    ask_again = client.post("/gradio_api/queue/join", json=body)
    assert ask_again.status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "odd"}) as stream:
        answer = next(line for line in stream.iter_lines() if '"process_completed"' in line)
    assert "is not a text" in answer
    written = capfd.readouterr()
    assert (
        len(written.out) + len(written.err) + sum(len(guard.cut(one.getMessage())) for one in caplog.records) < 50_000
    )


def test_entries_of_the_log_are_cut(capfd: pytest.CaptureFixture[str]) -> None:
    guard.cut_logs()
    import gradio

    try:
        raise ValueError("a" * 1_000_000)
    except ValueError:
        gradio.queueing.traceback.print_exc()
    assert len(capfd.readouterr().err) < 2 * LONGEST_LOG


@pytest.mark.parametrize("sent", [{"path": 5}, {"path": None}, "x", 5, ["x"], {}])
def test_a_picture_that_was_not_uploaded_is_named(sent: Any) -> None:
    with pytest.raises(ValueError, match="not an uploaded file"):
        PictureField().read(sent)


def test_an_upload_that_is_gone_or_a_folder_is_asked_for_again(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.png"):
        with pytest.raises(ValueError, match=r"x\.png is not here any more"):
            PictureField().read({"path": str(path), "orig_name": "x.png"})


@pytest.mark.parametrize("sent", [{"a": 1}, ["x"], 5, "\ud800"])
def test_what_is_no_text_is_named(sent: Any) -> None:
    with pytest.raises(ValueError, match="not a text"):
        TextField("Words").read(sent)


def test_a_proxys_prefix_is_in_every_address(
    families: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gradio names files by their content: with the same folder, closing this server would delete those of the other.
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    running = serve_runs(families[:1], root_path="https://photos.example.org/diptych")
    try:
        with httpx.Client(base_url=running.address, timeout=20) as client:
            headers = {"Host": "photos.example.org"}
            for path in ("/config", "/diptych/config"):
                response = client.get(path, headers=headers)
                assert response.status_code == 200
                assert response.json()["root"] == "https://photos.example.org/diptych"
            joined = client.post(
                "/gradio_api/queue/join",
                json=question(running, "proxied"),
                headers={**headers, "Origin": "https://photos.example.org"},
            )
            assert joined.status_code == 200
    finally:
        running.blocks.close()


@pytest.mark.parametrize("path", ["/gradio_api/run/predict", "/gradio_api/queue/join", "/gradio_api/cancel"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"x",
        b"[" * 200_000,
        b"\xff\xfe",
        b'{"data":null}',
        b'{"event_id":5,"session_hash":[]}',
    ]
    + [
        b'{"data":%b,"fn_index":%b,"session_hash":"a","event_id":"\\ud800"}' % (data, index)
        for data in (b"[]", b"{}", b'["\\ud800"]', b"[NaN,1e999]", b'[{"path":"/etc/passwd"}]', b"[" * 400 + b"]" * 400)
        for index in (b"0", b"-1", b"1", b'"x"', b"10000000000000000000000")
    ],
)
def test_odd_values_are_the_clients_fault(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code < 500 or response.status_code == 503


def test_pages_that_only_say_that_they_are_there_leave_room_for_others(
    client: httpx.Client, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_HEARTBEATS", 1)
    with client.stream("GET", "/gradio_api/heartbeat/a") as first:
        assert first.status_code == 200
        assert client.get("/gradio_api/heartbeat/b").status_code == 503
        assert client.get("/config").status_code == 200


def test_idle_connections_make_room_for_others(
    families: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(guard, "MOST_CONNECTIONS", 8)
    running = serve_runs(families[:1])
    host, _, port = running.address.removeprefix("http://").partition(":")
    idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(20)]
    try:
        assert httpx.get(f"{running.address}/config", trust_env=False).status_code == 200
        assert idle[0].recv(1) == b"" or pytest.fail("it was not closed")
    except ConnectionResetError:
        pass
    finally:
        for connection in idle:
            connection.close()
        running.blocks.close()


def test_open_requests_are_bounded(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_OPEN", 0)
    assert client.get("/config").status_code == 503


def send_part_of_an_upload(address: str, length: int, sent: int) -> None:
    """Announces an upload, sends a part of it, and leaves."""
    host, _, port = address.removeprefix("http://").partition(":")
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + bytes(sent))
        time.sleep(0.1)


def test_what_arrived_of_uploads_that_were_cut_off_takes_up_no_space(client: httpx.Client, app: App) -> None:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    for _ in range(3):
        send_part_of_an_upload(app.address, 1_000_000, 400_000)
    end = time.monotonic() + 10
    while parts := [file.name for file in folder.iterdir() if file.is_file()]:
        assert time.monotonic() < end, f"{parts} stay"
        time.sleep(0.05)
    files = {"files": ("a.png", png_of(8, 8), "image/png")}
    assert client.post("/gradio_api/upload", files=files).status_code == 200


def test_an_upload_is_one_file_and_a_small_one_counts_as_more(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload(*contents: bytes) -> int:
        files = [("files", (f"{number}.png", content, "image/png")) for number, content in enumerate(contents)]
        return client.post("/gradio_api/upload", files=files).status_code

    assert upload(b"a", b"b") == 400
    room = guard._bytes_in(Path(os.environ["GRADIO_TEMP_DIR"])) + 2 * guard.SMALLEST
    monkeypatch.setattr(guard, "UPLOADED", room)
    assert [upload(bytes([number]) * 50) for number in range(4)] == [200, 200, 507, 507]


def test_requests_that_break_gradio_get_a_short_answer_and_the_connection_goes_on(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    nameless = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--x--\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/gradio_api/upload", content=nameless, headers=form)
    assert response.status_code == 400
    assert "one file with a name" in response.json()["detail"]
    for path in ("/pwa_icon/30000", "/gradio_api/proxy=a%00b", "/monitoring", "/openapi.json", "/gradio_api/vibe-code"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.json()["detail"] == "there is nothing at this path"
    for path in ("/static/", "/assets/", "/gradio_api/file="):
        assert client.get(path + "a" * 3_000).status_code in (403, 404)
    for path in ("/gradio_api/call/x", "/gradio_api/call/v2/x", "/gradio_api/api/x", "/gradio_api/reset"):
        assert client.post(path, json={"data": [], "fn_index": -1, "session_hash": "a"}).status_code == 404
    assert client.put("/config").status_code == client.get("/gradio_api/cancel").status_code == 405
    assert sum(len(one.getMessage()) for one in caplog.records) < 2 * LONGEST_LOG
