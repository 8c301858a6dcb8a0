"""Stands before Gradio: decides whose requests are answered, how much they may send, and how long answers stay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import gradio
import uvicorn
from gradio import http_server
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.apps.app.fields import MOST_BYTES
from diptych.apps.connections import ABORT, Connections, most_connections
from diptych.apps.web import OncePerSecond, cut, host_is_allowed, host_name, without_prefix
from diptych.predict.inputs import is_whole
from diptych.printable import printable

LOG = logging.getLogger(__name__)
MOST_FORM_BYTES = 2**20
"""Largest body of a request that is no upload. Forms hold texts of 2,000 letters and the names of uploads."""
MULTIPART = 2**16
"""Bytes that an upload may have besides its file."""
UPLOADED = 500 * 2**20
"""Bytes of all uploads that are kept at a time."""
SLOWEST_FORM, SLOWEST_UPLOAD = 20.0, 120.0
"""Seconds for the body of a request to arrive."""
SMALLEST = 2**16
"""Bytes that a smaller upload counts as, so that the folder of uploads stays one that can be listed quickly."""
UNREAD_SECONDS = 60.0
"""Seconds after which answers are dropped that nobody fetches."""
MOST_UNREAD, MOST_OF_A_SESSION = 64, 8
"""Questions, of all visitors and of one, whose answers nobody fetches at the moment. Further ones are refused."""
LONGEST_SESSION = 100
"""Characters of the name that a browser gives to its session."""
MOST_OPEN, MOST_HEARTBEATS = 512, 256
"""Requests that are open at once, and those of them that browsers keep open to say that they are there. Further ones
are refused."""
MOST_CONNECTIONS = 1_024
"""Open connections. For a further one, an idle one is closed."""
SLOWEST_HEAD, SLOWEST_READER = 20.0, 30.0
"""Seconds for the head of a request to arrive, and for a client to take a piece of an answer."""
READ, WRITTEN = ("GET", "HEAD"), ("POST",)
READ_PATHS = (
    "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/gradio_api/info", "/gradio_api/app_id",
    "/gradio_api/queue/data", "/gradio_api/upload_progress", "/gradio_api/startup-events",
)  # fmt: skip
"""What pages and clients of Gradio ask for, besides the pages and what lies below READ_BELOW."""
FILES_BELOW = ("/static/", "/assets/", "/svelte/", "/gradio_api/file=")
READ_BELOW = (*FILES_BELOW, "/gradio_api/heartbeat/")
AT_ONCE = "/gradio_api/run/predict"
"""What a choice in a list asks for, which is answered without waiting."""
WRITE_PATHS = ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel", AT_ONCE)


class Refused(Exception):
    """Says with which status and words a request is refused."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ClientGone(Exception):
    """Says that a client did not take its answer, and that its connection was ended."""


class Guard:
    """Wraps Gradio's application."""

    def __init__(
        self, app: ASGIApp, blocks: gradio.Blocks, uploads: Path, hosts: Collection[str] | None,
        names: Collection[str] = (), root_path: str = "",
    ) -> None:  # fmt: skip
        """`hosts` are the accepted Host headers (None accepts any), `names` those given by the user. Both are in lower
        case. `uploads` is the folder of uploaded files, and `root_path` a proxy's prefix."""
        self.app, self.blocks, self.uploads = app, blocks, uploads
        self.hosts, self.names, self.root_path = hosts, frozenset(names), root_path
        self._pages = frozenset(f"/{page[0]}" for page in blocks.pages)
        self._open = self._heartbeats = 0
        """Requests that are being answered, and the heartbeats among them."""
        self._arriving = self._uploading = 0
        """Bytes, and number, of the uploads that are arriving."""
        self._reading: Counter[str] = Counter()
        """Open streams of answers by session."""
        self._asked: dict[str, float] = {}
        """When each session last asked something, or stopped reading."""
        self._sweeping: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                asyncio.get_running_loop().set_exception_handler(OncePerSecond(LOG))
                await self.app(scope, receive, send)
            return
        scope = {**scope, "path": without_prefix(scope["path"], self.root_path)}
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            try:
                async with asyncio.timeout(SLOWEST_READER):
                    await send(message)
            except TimeoutError:
                if ABORT in scope:
                    scope[ABORT]()
                raise ClientGone from None

        self._open += 1
        try:
            self._check_origin(scope)
            self._check_path(scope)
            if self._open > MOST_OPEN:
                raise Refused(503, "too many requests are open: try again later")
            await self._pass_on(scope, receive, tell)
        except Refused as refused:
            if not begun:
                await _refusal(refused)(scope, receive, send)
        except ClientGone:
            pass
        except Exception:
            # Gradio trusts its own pages: what others send can break it anywhere.
            LOG.error("%s %s broke: %s", scope["method"], cut(printable(scope["path"])), _safe(traceback.format_exc()))
            if not begun:
                await _refusal(Refused(500, "the server could not answer this request"))(scope, receive, send)
        finally:
            self._open -= 1

    def _check_origin(self, scope: Scope) -> None:
        """Refuses names that this machine does not go by, and requests that other web pages make."""
        headers = Headers(scope=scope)
        host = headers.get("host")
        if not host_is_allowed(host, self.hosts, scope["http_version"]):
            raise Refused(421, "this server answers to its own names only; --allow-host adds one")
        origin = headers.get("origin")
        if origin is None:
            return
        authority = origin.partition("://")[2].lower()
        if authority != (host or "").lower() and host_name(authority) not in self.names:
            raise Refused(403, "a page of another server sent this; --allow-host adds the name of a server")

    def _check_path(self, scope: Scope) -> None:
        """Refuses what the pages do not use. Gradio has many more routes, which break on requests of others."""
        path: str = scope["path"].rstrip("/") or "/"
        read = path in READ_PATHS or path in self._pages or path.startswith(READ_BELOW)
        if not read and path not in WRITE_PATHS:
            raise Refused(404, "there is nothing at this path")
        if scope["method"] not in (READ if read else WRITTEN):
            raise Refused(405, "this path does not accept this method")

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"].rstrip("/")
        if path.endswith("/queue/data"):
            return await self._read_answers(scope, receive, send)
        if path.startswith("/gradio_api/heartbeat/"):
            return await self._keep_heartbeat(scope, receive, send)
        if path.startswith(FILES_BELOW):
            return await self._read_file(scope, receive, send)
        if scope["method"] in READ:
            return await self.app(scope, receive, send)
        if path.endswith("/gradio_api/upload"):
            return await self._upload(scope, receive, send)
        body = await _read(receive, MOST_FORM_BYTES, SLOWEST_FORM)
        if path.endswith("/queue/join"):
            self._admit_question(self._question(body))
        if path != AT_ONCE:
            return await self.app(scope, _replay(body, receive), send)
        self._question(body)
        try:
            return await self.app(scope, _replay(body, receive), _blaming_client(send))
        except Exception as error:  # no model is asked, so that only values of a wrong kind break it
            LOG.info("%s broke: %s", path, _safe(repr(error)))
            raise Refused(400, "this is not a question of these pages") from None

    async def _keep_heartbeat(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._heartbeats >= MOST_HEARTBEATS:
            raise Refused(503, "too many pages are open: try again later")
        self._heartbeats += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._heartbeats -= 1

    async def _read_file(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except (OSError, ValueError):  # a name that no file can have
            raise Refused(404, "there is nothing at this path") from None

    # ------------------------------------------------------------------ uploads

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = Headers(scope=scope).get("content-length", "")
        if not sent.isdecimal():
            raise Refused(411, "an upload says its length")
        size = int(sent[:20])
        if size > MOST_BYTES + MULTIPART:
            raise Refused(413, f"an upload has at most {MOST_BYTES // 2**20} MiB, which is the maximum allowed size")
        end = time.monotonic() + SLOWEST_UPLOAD

        async def receive_in_time() -> Message:
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    return await receive()
            except TimeoutError:
                return {"type": "http.disconnect"}

        self._arriving += size
        self._uploading += 1
        try:
            kept = await asyncio.to_thread(_bytes_in, self.uploads)
            if self._arriving + kept > UPLOADED:
                raise Refused(507, "the space for uploads is full: try again later, when old ones were deleted")
            await self.app(scope, receive_in_time, send)
        except (AttributeError, TypeError, ValueError, LookupError):
            raise Refused(400, "an upload is one file with a name, sent as a form") from None
        finally:
            self._arriving -= size
            self._uploading -= 1
            self._delete_parts()

    def _delete_parts(self) -> None:
        """Deletes what has arrived of uploads that were cut off. Gradio forgets it, so it would take up space for good.

        Whole uploads lie in folders of their own.
        """
        before = time.time() - SLOWEST_UPLOAD if self._uploading else float("inf")
        with contextlib.suppress(OSError), os.scandir(self.uploads) as entries:
            for entry in entries:
                if entry.is_file() and entry.stat().st_mtime < before:
                    os.unlink(entry)  # noqa: PTH108

    # ------------------------------------------------------------------ answers

    def _question(self, body: bytes) -> str:
        """Returns the session of a question to one of the pages. Raises Refused for anything else."""
        try:
            question = json.loads(body)
            session, number = question["session_hash"], question["fn_index"]
            known = isinstance(number, int) and number in self.blocks.fns
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Refused(400, "this is not a question") from None
        if not known:
            raise Refused(400, "this is not a question of these pages")
        if not isinstance(session, str) or not 0 < len(session) <= LONGEST_SESSION or not is_whole(session):
            raise Refused(400, f"a session is named by at most {LONGEST_SESSION} characters")
        return session

    def _admit_question(self, session: str) -> None:
        """Refuses a question if too many answers wait to be fetched."""
        waiting = self.blocks._queue.pending_event_ids_session
        unread = sum(len(events) for name, events in waiting.items() if not self._reading[name])
        if unread >= MOST_UNREAD or len(waiting.get(session, ())) >= MOST_OF_A_SESSION:
            raise Refused(503, "too many questions are open: fetch their answers, or try again in a minute")
        self._asked[session] = time.monotonic()
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.ensure_future(self._sweep())

    async def _read_answers(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        self._reading[session] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._reading[session] -= 1
            if not self._reading[session]:
                del self._reading[session]
            if session in self._asked:
                self._asked[session] = time.monotonic()

    async def _sweep(self) -> None:
        """Drops the answers of sessions that nobody reads, until there is no session."""
        while self._asked:
            await asyncio.sleep(UNREAD_SECONDS / 4)
            before = time.monotonic() - UNREAD_SECONDS
            for session in [name for name, asked in self._asked.items() if asked < before and not self._reading[name]]:
                del self._asked[session]
                await self._forget(session)
            self._reading = +self._reading

    async def _forget(self, session: str) -> None:
        queue = self.blocks._queue
        await queue.clean_events(session_hash=session)
        queue.pending_messages_per_session.pop(session, None)
        for event in queue.pending_event_ids_session.pop(session, ()):
            queue.event_ids_to_events.pop(event, None)


async def _read(receive: Receive, most: int, seconds: float) -> bytes:
    """Reads a whole body. Raises Refused for a large or a slow one."""
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the client has left")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > most:
                    raise Refused(413, f"a form has at most {most:,} bytes")
    except TimeoutError:
        raise Refused(408, f"the request took longer than {seconds:g} s") from None
    return bytes(body)


def _blaming_client(send: Send) -> Send:
    """Returns a channel on which 500 becomes 400. What is answered at once only breaks on values of a wrong kind."""

    async def sent(message: Message) -> None:
        await send({**message, "status": 400} if message.get("status") == 500 else message)

    return sent


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a channel that gives the body that was read, and then what `receive` gives."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def _refusal(refused: Refused) -> JSONResponse:
    return JSONResponse({"detail": str(refused)}, refused.status, {"Connection": "close"})


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it was deleted in between
            if file.is_file():
                total += max(file.stat().st_size, SMALLEST)
    return total


class _OneFile(gradio.route_utils.GradioMultiPartParser):
    """Reads uploads of one file, as pages send them. Gradio's own would open a thousand files at a time."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{**named, "max_files": 1, "max_fields": 1})


def limit_uploads() -> None:
    """Lets every upload hold one file."""
    vars(gradio.route_utils)["GradioMultiPartParser"] = _OneFile


def limit_connections() -> None:
    """Lets connections that ask nothing, or read nothing, make room. Gradio makes its server without any limit."""
    connections = Connections(most_connections(MOST_CONNECTIONS), SLOWEST_HEAD, SLOWEST_READER)

    def config(**named: Any) -> uvicorn.Config:
        return uvicorn.Config(**named, http=connections.protocol, ws="none", timeout_graceful_shutdown=1)  # type: ignore[arg-type]

    vars(http_server)["uvicorn"] = SimpleNamespace(Config=config)


# --------------------------------------------------------------------------- the log


def _safe(text: str) -> str:
    """Cuts an entry of the log, and escapes what a terminal would obey and what no file can hold."""
    return printable(cut(text), lines=True)


class _CutFormatter(logging.Formatter):
    """Formats as another formatter does, and cuts."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return _safe(self._formatter.format(record))


def cut_logs() -> None:
    """Cuts what Gradio and uvicorn log. Gradio prints tracebacks itself, whose errors quote whole requests."""
    shim = SimpleNamespace(print_exc=lambda: LOG.error("%s", _safe(traceback.format_exc())))
    for module in (gradio.queueing, gradio.routes, gradio.route_utils):
        vars(module)["traceback"] = shim
    for name in ("uvicorn", "uvicorn.error"):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler.formatter, _CutFormatter):
                handler.setFormatter(_CutFormatter(handler.formatter or logging.Formatter()))
