"""Which of many processes hangs: without it all would wait for one, and none would say for whom."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from diptych.train.distributed import World

EXIT_STATUS = 75
"""Of a process that gives up waiting: a failure that may pass (sysexits.h), after which `torchrun` starts all anew."""
BEATS = 20
"""How often within the time allowed a process says that it lives."""
JUDGED = 4
"""Beats that others are waited for, once nobody goes on."""


class Watch:
    """Each process writes down which step it has reached, and a thread of it that it lives."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.seconds = world, seconds
        self.reached = 0
        self.since = time.monotonic()
        self.ended = threading.Event()
        self.store: dist.Store | None = None
        self.heard: list[tuple[float, list[int]]] = []
        """When all processes' beats were read, and what they were."""
        self.steps: list[int] = []
        if world.size > 1:
            self.store = _get_default_store()
            for work in (self._beat, self._judge):
                threading.Thread(target=work, daemon=True).start()

    def arrived(self, step: int) -> None:
        """This process has the batch of the step; the next thing that it does is to meet the others."""
        self.reached, self.since = step, time.monotonic()
        self._write("step", step)

    def left(self) -> None:
        """The step is done. What follows (a validation, a checkpoint) takes its time, and nobody is waited for."""
        self.reached = 0

    def _write(self, what: str, number: int) -> None:
        if self.store is not None:
            self.store.set(f"diptych/{what}/{self.world.rank}", str(number))

    def _read(self, what: str) -> list[int]:
        assert self.store is not None
        keys = [f"diptych/{what}/{rank}" for rank in range(self.world.size)]
        return [int(self.store.get(key)) if self.store.check([key]) else 0 for key in keys]

    def _beat(self) -> None:
        """In a thread, which waits as long as the first process hangs: say that this one lives, hear of the others."""
        beat = 0
        while not self.ended.wait(self.seconds / BEATS):
            beat += 1
            try:
                self._write("beat", beat)
                self.steps = self._read("step")
                self.heard = [*self.heard[-JUDGED:], (time.monotonic(), self._read("beat"))]
            except dist.DistError:  # the first process, which keeps the store, is gone: torchrun ends the others
                return

    def _judge(self) -> None:
        """In a thread: when nobody goes on, say who is missing, and end."""
        beat = self.seconds / BEATS
        while not self.ended.wait(beat):
            now = time.monotonic()
            step = self.reached
            if not step or now - self.since < self.seconds + (JUDGED + 1) * beat:
                continue
            deaf = not self.heard or now - self.heard[-1][0] > JUDGED * beat
            before, last = ([], []) if deaf else (self.heard[0][1], self.heard[-1][1])
            print(f"diptych: {self.missing(step, before, last, self.steps)}", file=sys.stderr, flush=True)
            os._exit(EXIT_STATUS)

    def missing(self, step: int, before: list[int], now: list[int], steps: list[int]) -> str:
        """Who does not answer, or else who has not come to the step that others wait in.

        `before` and `now`: beats of all processes; none where the first, which keeps them, does not give them out.
        """
        silent = [rank for rank, (old, new) in enumerate(zip(before, now, strict=True)) if old == new] if now else [0]
        late = [rank for rank, reached in enumerate(steps) if reached < step]
        where = f"no step for {self.seconds:.0f} s (run.timeout), in step {step}"
        if silent:
            return f"{where}: process {_named(silent)} does not answer"
        if late:
            return f"{where}: process {_named(late)} has not got its data yet"
        return f"{where}: all processes are there and wait for each other; the network may be down"


def _named(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


@contextmanager
def watched(world: World, seconds: float) -> Iterator[Watch]:
    """A watch as long as the run goes on."""
    watch = Watch(world, seconds)
    try:
        yield watch
    finally:
        watch.ended.set()
