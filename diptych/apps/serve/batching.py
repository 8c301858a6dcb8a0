"""Batches requests of many clients: one thread runs the models and takes equal calls together."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diptych.apps.serve.errors import ApiError
from diptych.apps.serve.limits import Limits
from diptych.apps.serve.metrics import Metrics
from diptych.apps.serve.requests import Inputs, ModelCall

log = logging.getLogger("diptych.apps.serve")
SMOOTHING = 0.2
"""Weight of the newest batch in the moving average of rows per second."""
LONGEST_RETRY = 60
"""Largest number of seconds in a Retry-After header."""


@dataclass(eq=False)
class Job:
    """A prepared request that waits for a model."""

    call: ModelCall
    inputs: Inputs
    rows: int
    result: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)


class ExpectedRequest:
    """Announces a request that is being prepared, for which a batch waits a little. `arrived` may be called twice."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher, self._expected = batcher, True
        batcher._expect(1)

    def arrived(self) -> None:
        """Ends the announcement, whether the request is ready or has failed."""
        if self._expected:
            self._expected = False
            self._batcher._expect(-1)


class Batcher:
    """Collects prepared requests and runs the models on a thread of its own, until `close`."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self._waiting: deque[Job] = deque()
        self._expected = 0
        self._closed = False
        self._rows_per_second = 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="diptych-models", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    async def submit(self, call: ModelCall, inputs: Inputs, expected: ExpectedRequest) -> Any:
        """Returns the result of one request. If it is cancelled before a model began it, it is dropped."""
        job = Job(call, inputs, call.rows(inputs), asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closed:
                raise ApiError("stopping", "the server is being stopped")
            self._waiting.append(job)
            self.metrics.waiting.set(len(self._waiting))
        expected.arrived()
        with self._changed:
            self._changed.notify_all()
        try:
            return await job.result
        except asyncio.CancelledError:
            self._drop(job)
            raise

    def retry_after(self) -> int:
        """Estimates the seconds until the waiting requests are answered, from the measured rate."""
        with self._changed:
            rows = sum(job.rows for job in self._waiting)
            seconds = rows / self._rows_per_second if self._rows_per_second else 1.0
        return max(1, min(math.ceil(seconds), LONGEST_RETRY))

    def close(self, seconds: float) -> None:
        """Drops waiting requests, and waits at most this long for the running batch."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(seconds)

    def _expect(self, change: int) -> None:
        with self._changed:
            self._expected += change
            if not self._expected:
                self._changed.notify_all()

    def _drop(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self.metrics.waiting.set(len(self._waiting))
                self.metrics.dropped.inc()

    # ------------------------------------------------------------------ on the models' thread

    def _run(self) -> None:
        while batch := self._take():
            self._process(batch)

    def _take(self) -> list[Job]:
        """Takes the oldest request and those with an equal call, after waiting a little for expected ones.

        Returns an empty list when the batcher is closed.
        """
        with self._changed:
            while not self._closed:
                if not self._waiting:
                    self._changed.wait()
                    continue
                batch, full = self._equal_calls()
                remaining = batch[0].since + self.limits.wait_ms / 1000 - time.monotonic()
                if full or remaining <= 0 or not self._expected:
                    taken = set(map(id, batch))
                    self._waiting = deque(job for job in self._waiting if id(job) not in taken)
                    self.metrics.waiting.set(len(self._waiting))
                    return batch
                self._changed.wait(remaining)
        return []

    def _equal_calls(self) -> tuple[list[Job], bool]:
        """Collects waiting requests with the oldest one's call, in order, and says whether the batch is full."""
        first = self._waiting[0]
        batch, rows = [first], first.rows
        for job in self._waiting:
            if job is first or job.call != first.call:
                continue
            if rows + job.rows > self.limits.batch:
                return batch, True
            batch.append(job)
            rows += job.rows
        return batch, rows >= self.limits.batch

    def _process(self, batch: Sequence[Job]) -> None:
        ability, start = batch[0].call.ability, time.monotonic()
        for job in batch:
            self.metrics.waited.observe(start - job.since)
        results = self._results(batch)
        seconds, rows = time.monotonic() - start, sum(job.rows for job in batch)
        self.metrics.batches.labels(ability).observe(len(batch))
        self.metrics.rows.labels(ability).observe(rows)
        self.metrics.batch_seconds.labels(ability).observe(seconds)
        with self._changed:
            rate, average = rows / max(seconds, 1e-6), self._rows_per_second
            self._rows_per_second = SMOOTHING * rate + (1 - SMOOTHING) * average if average else rate
        _deliver(batch, results)

    def _results(self, batch: Sequence[Job]) -> list[Any]:
        """Returns the result or the exception of each job. If a batch fails, each of its jobs runs alone."""
        try:
            return list(batch[0].call([job.inputs for job in batch]))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            log.info("a batch of %d failed (%s): running each request alone", len(batch), error)
            return [self._results([job])[0] for job in batch]


def _deliver(batch: Sequence[Job], results: Sequence[Any]) -> None:
    """Hands all results to the event loop in one call."""

    def settle() -> None:
        for job, result in zip(batch, results, strict=True):
            if job.result.done():
                continue  # the client has left
            if isinstance(result, Exception):
                job.result.set_exception(result)
            else:
                job.result.set_result(result)

    try:
        batch[0].result.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:  # the event loop is closed: the server ran out of time to stop
        log.warning("%d answers came after the server had stopped", len(batch))
