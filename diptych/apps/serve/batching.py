"""Requests of many clients to calls of a model: one thread runs the models and takes what is alike together."""

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
from diptych.apps.serve.measures import Measures
from diptych.apps.serve.requests import Ask, Given

log = logging.getLogger("diptych.apps.serve")
SMOOTH = 0.2
"""Weight of the newest batch in the measured rate."""
LONGEST_RETRY = 60
"""Seconds in Retry-After at most."""


@dataclass(eq=False)
class Job:
    """A prepared request that waits for a model."""

    ask: Ask
    given: Given
    rows: int
    done: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)


class Coming:
    """A request that is being prepared: for it, a batch waits a little. Ends once, however often it is told."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher, self._on_its_way = batcher, True
        batcher._expect(1)

    def over(self) -> None:
        if self._on_its_way:
            self._on_its_way = False
            self._batcher._expect(-1)


class Batcher:
    """Waits for prepared requests and asks the models, on a thread of its own, until `close`."""

    def __init__(self, limits: Limits, measures: Measures) -> None:
        self.limits, self.measures = limits, measures
        self._waiting: deque[Job] = deque()
        self._coming = 0
        self._closed = False
        self._rate = 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="diptych-models", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    async def ask(self, ask: Ask, given: Given, coming: Coming) -> Any:
        """The result for one request. Cancelled before a model began it, it is dropped."""
        job = Job(ask, given, ask.rows(given), asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closed:
                raise ApiError("stopping", "the server is being stopped")
            self._waiting.append(job)
            self.measures.waiting.set(len(self._waiting))
        coming.over()
        with self._changed:
            self._changed.notify_all()
        try:
            return await job.done
        except asyncio.CancelledError:
            self._drop(job)
            raise

    def retry_after(self) -> int:
        """Seconds until what waits is answered, at the rate that was measured."""
        with self._changed:
            rows = sum(job.rows for job in self._waiting)
            seconds = rows / self._rate if self._rate else 1.0
        return max(1, min(math.ceil(seconds), LONGEST_RETRY))

    def close(self, seconds: float) -> None:
        """Finishes what is being computed, and waits for it so long at most; what waits is dropped."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(seconds)

    def _expect(self, more: int) -> None:
        with self._changed:
            self._coming += more
            if not self._coming:
                self._changed.notify_all()

    def _drop(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self.measures.waiting.set(len(self._waiting))
                self.measures.dropped.inc()

    # ------------------------------------------------------------------ on the models' thread

    def _run(self) -> None:
        while batch := self._take():
            self._work(batch)

    def _take(self) -> list[Job]:
        """The oldest request and those that go with it; none when closed. Waits for what is on its way, a little."""
        with self._changed:
            while not self._closed:
                if not self._waiting:
                    self._changed.wait()
                    continue
                batch, full = self._alike()
                left = batch[0].since + self.limits.wait_ms / 1000 - time.monotonic()
                if full or left <= 0 or not self._coming:
                    taken = set(map(id, batch))
                    self._waiting = deque(job for job in self._waiting if id(job) not in taken)
                    self.measures.waiting.set(len(self._waiting))
                    return batch
                self._changed.wait(left)
        return []

    def _alike(self) -> tuple[list[Job], bool]:
        """Waiting requests that ask as the oldest does, in order, as many as fit; and whether no more do."""
        first = self._waiting[0]
        batch, rows = [first], first.rows
        for job in self._waiting:
            if job is first or job.ask != first.ask:
                continue
            if rows + job.rows > self.limits.batch:
                return batch, True
            batch.append(job)
            rows += job.rows
        return batch, rows >= self.limits.batch

    def _work(self, batch: Sequence[Job]) -> None:
        ability, begun = batch[0].ask.ability, time.monotonic()
        for job in batch:
            self.measures.waited.observe(begun - job.since)
        results = self._results(batch)
        taken, rows = time.monotonic() - begun, sum(job.rows for job in batch)
        self.measures.batches.labels(ability).observe(len(batch))
        self.measures.rows.labels(ability).observe(rows)
        self.measures.working.labels(ability).observe(taken)
        with self._changed:
            rate = rows / max(taken, 1e-6)
            self._rate = SMOOTH * rate + (1 - SMOOTH) * self._rate if self._rate else rate
        _deliver(batch, results)

    def _results(self, batch: Sequence[Job]) -> list[Any]:
        """For each job its result, or the exception that it raised. No job fails by another's fault."""
        try:
            return list(batch[0].ask([job.given for job in batch]))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            log.info("a batch of %d failed (%s): each alone", len(batch), error)
            return [self._results([job])[0] for job in batch]


def _deliver(batch: Sequence[Job], results: Sequence[Any]) -> None:
    """Hands the results to the event loop, in one call."""

    def settle() -> None:
        for job, result in zip(batch, results, strict=True):
            if job.done.done():
                continue  # whoever asked has gone
            if isinstance(result, Exception):
                job.done.set_exception(result)
            else:
                job.done.set_result(result)

    try:
        batch[0].done.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:  # the loop was closed: the server had no more time
        log.warning("%d answers came after the end", len(batch))
