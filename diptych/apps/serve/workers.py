"""Runs the work of requests on a few threads, within what a request may cost and only while somebody waits for it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.limits import Limits

Value = TypeVar("Value")


class WorkEnded(Exception):
    """Says that nobody waits for the work any more."""


class Work:
    """One request's work on a thread: the pixels that it may still cost, and whether somebody still waits for it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pixels_left = limits.request_pixels
        self._ended = threading.Event()

    def end(self) -> None:
        """Makes the work stop before its next picture or heat map."""
        self._ended.set()

    def go_on(self) -> None:
        """Raises WorkEnded if nobody waits any more."""
        if self._ended.is_set():
            raise WorkEnded

    def spend(self, pixels: int, what: str) -> None:
        """Charges pixels. Raises ApiError if the request costs more than is allowed, and WorkEnded."""
        self.go_on()
        if pixels > self.pixels_left:
            raise ApiError(
                "picture_too_large",
                f"{what}: with it the request costs more than {self.limits.request_pixels:,} pixels. Send fewer or "
                "smaller pictures, or fewer phrases, at once",
            )
        self.pixels_left -= pixels


class Workers:
    """Threads that end with the process, whatever they do. (Those of `concurrent.futures` would keep it alive.)"""

    def __init__(self, count: int, name: str, limits: Limits) -> None:
        self._limits = limits
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._open: set[Work] = set()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, call: Callable[..., Value], *arguments: Any) -> Value:
        """Returns `call(work, *arguments)`, computed on a thread. If this is cancelled, the work ends early."""
        if self._closed:
            raise ApiError("stopping", "the server is being stopped")
        work, future = Work(self._limits), Future[Value]()
        self._open.add(work)
        self._calls.put((future, lambda: call(work, *arguments)))
        try:
            return await asyncio.wrap_future(future)
        finally:
            work.end()
            self._open.discard(work)

    def close(self) -> None:
        """Ends all work and the threads. Work that is being done ends before its next picture."""
        self._closed = True
        for work in tuple(self._open):
            work.end()
        for _ in self._threads:
            self._calls.put(None)

    def _run(self) -> None:
        while (taken := self._calls.get()) is not None:
            future, call = taken
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except ApiError as error:  # its frames hold what the client sent, and nobody reads them
                    error.__traceback__ = error.__context__ = None
                    future.set_exception(error)
                except BaseException as error:
                    future.set_exception(error)
            del taken, future, call  # what a request sent is not kept until the next one comes
