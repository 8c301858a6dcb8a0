"""What `serve` and `app` share of their connections: how many there are, and how long they may send or take nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass, field
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

ABORT = "diptych.abort"
"""Key in a request's scope of the function that ends its connection at once."""
BACKLOG = 4
"""Connections that are accepted before those that are open get their turn. Of a flood that breaks off, more are passed
over unseen the later they are accepted: with 128, others waited three times as long."""
OTHER_FILES = 64
"""Files that the process may need to open besides its connections."""
READ_AT_ONCE = 1 << 13
"""Bytes that are read from a connection at a time. A body of one-byte chunks takes 25 ms for these."""


def most_connections(wanted: int) -> int:
    """Returns how many connections there can be at once, given how many files the process may open."""
    try:
        import resource

        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    except (ImportError, OSError):  # not on every system
        return wanted
    if files == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, files - opened - BACKLOG - OTHER_FILES))


@dataclass
class Connections:
    """The limits of a server's connections, and those that ask nothing at the moment."""

    most: int
    """Open connections. For a further one, the connection that has asked nothing for the longest time is closed."""
    head_seconds: float
    """Seconds for the head of a request to arrive."""
    answer_seconds: float
    """Seconds for a client to take what is left of an answer."""
    idle: dict[TimedProtocol, None] = field(default_factory=dict)
    """Connections without a request, those that wait longest first."""

    def protocol(self, *arguments: Any, **named: Any) -> asyncio.Protocol:
        """Makes the protocol of a new connection, as uvicorn asks for it."""
        return TimedProtocol(self, *arguments, **named)


class TimedProtocol(H11Protocol):
    """Closes connections that send no request or take no answer in time, and idle ones if there are too many."""

    def __init__(self, all_connections: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._all = all_connections
        self._timeout: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        with contextlib.suppress(AttributeError):  # an event loop of another kind
            transport.max_size = READ_AT_ONCE  # type: ignore[attr-defined]
        self._wait_for_head()
        if len(self.connections) > self._all.most:
            longest = next(iter(self._all.idle))  # this one, if all others have asked something
            longest._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_waiting()
            cast(dict[str, Any], self.cycle.scope)[ABORT] = self.transport.abort
        elif self._timeout is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()  # the head of the next request has begun

    def on_response_complete(self) -> None:
        """Gives the client a time to take what is left of the answer, also if the connection is to be closed then."""
        if self._unread is not None:
            self._unread.cancel()
        self._unread = self.loop.call_later(self._all.answer_seconds, self._abort_unread)
        self._all.idle[self] = None
        super().on_response_complete()

    def _abort_unread(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answers in the shape of every other error. `msg` is always the same."""
        message = {"code": "bad_http", "message": "this is not an HTTP request"}
        content = json.dumps({"error": message | {"type": "invalid_request_error", "param": None}}).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + content)
        self.transport.close()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._all.idle[self] = None
        self._timeout = self.loop.call_later(self._all.head_seconds, self._end)

    def _end(self) -> None:
        """Closes the connection, at once if the client does not take what is left."""
        self._abort_unread()
        self.transport.close()

    def _leave(self) -> None:
        """Makes room for another connection."""
        self._stop_waiting()
        self.connections.discard(self)
        self.transport.abort()

    def _stop_waiting(self) -> None:
        self._all.idle.pop(self, None)
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
