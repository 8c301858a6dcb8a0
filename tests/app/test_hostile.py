"""Checks that hostile input does no harm and is answered with a message."""

from __future__ import annotations

import json
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from diptych.apps.app.fields import MOST_BYTES, MOST_LETTERS
from diptych.apps.app.server import KEPT
from tests.app.conftest import App, Visitor

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
