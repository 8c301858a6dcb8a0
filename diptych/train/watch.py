"""Finds out which of several processes hangs. Otherwise all would wait for that one, and none could name it."""

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
"""The exit status of a process that gives up waiting: a failure that may pass (EX_TEMPFAIL of sysexits.h). `torchrun`
then starts all processes anew."""
BEATS = 20
"""How many times in `seconds` a process signals that it lives."""
GRACE_BEATS = 4
"""How many beats of another process may be missing before it counts as silent."""


class Watch:
    """Publishes this process's progress to the others, and ends it when a step takes longer than `seconds`.

    The main thread publishes the step that it has reached. A second thread publishes a beat, which shows that the
    process lives, and reads those of the others. A third one judges them once a step takes too long.
    """

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.seconds = world, seconds
        self.reached = 0
        self.since = time.monotonic()
        self.ended = threading.Event()
        self.store: dist.Store | None = None
        self.heard: list[tuple[float, list[int]]] = []
        """The last readings of all processes' beats, each with its time."""
        self.steps: list[int] = []
        """The step that each process has reached."""
        if world.size > 1:
            self.store = _get_default_store()
            for work in (self._beat, self._judge):
                threading.Thread(target=work, daemon=True).start()

    def arrived(self, step: int) -> None:
        """Notes that this process has the batch of `step`, and will next exchange tensors with the others."""
        self.reached, self.since = step, time.monotonic()
        self._write("step", step)

    def left(self) -> None:
        """Notes that the step is done. A validation or checkpoint that follows may take any time."""
        self.reached = 0

    def _write(self, kind: str, number: int) -> None:
        if self.store is not None:
            self.store.set(f"diptych/{kind}/{self.world.rank}", str(number))

    def _read(self, kind: str) -> list[int]:
        assert self.store is not None
        keys = [f"diptych/{kind}/{rank}" for rank in range(self.world.size)]
        return [int(self.store.get(key)) if self.store.check([key]) else 0 for key in keys]

    def _beat(self) -> None:
        """Publishes this process's beat and reads the others', in a thread, which blocks while the first one hangs."""
        beat = 0
        while not self.ended.wait(self.seconds / BEATS):
            beat += 1
            try:
                self._write("beat", beat)
                self.steps = self._read("step")
                self.heard = [*self.heard[-GRACE_BEATS:], (time.monotonic(), self._read("beat"))]
            except dist.DistError:  # the first process, which keeps the store, is gone, and torchrun ends the others
                return

    def _judge(self) -> None:
        """Ends this process, in a thread, when its step takes too long, and prints which process is missing."""
        beat = self.seconds / BEATS
        while not self.ended.wait(beat):
            now = time.monotonic()
            step = self.reached
            if not step or now - self.since < self.seconds + (GRACE_BEATS + 1) * beat:
                continue
            store_hangs = not self.heard or now - self.heard[-1][0] > GRACE_BEATS * beat
            before, last = ([], []) if store_hangs else (self.heard[0][1], self.heard[-1][1])
            print(f"diptych: {self.missing(step, before, last, self.steps)}", file=sys.stderr, flush=True)
            os._exit(EXIT_STATUS)

    def missing(self, step: int, before: list[int], now: list[int], steps: list[int]) -> str:
        """Names the processes that do not answer, or else those that have not reached the step of the others.

        `before` and `now`: the beats of all processes, at two times. They are empty where the first process, which
        keeps the store, does not answer.
        """
        silent = [rank for rank, (old, new) in enumerate(zip(before, now, strict=True)) if old == new] if now else [0]
        late = [rank for rank, reached in enumerate(steps) if reached < step]
        fault = f"no step for {self.seconds:.0f} s (run.timeout), in step {step}"
        if silent:
            return f"{fault}: process {', '.join(map(str, silent))} does not answer"
        if late:
            return f"{fault}: process {', '.join(map(str, late))} has not got its data yet"
        return f"{fault}: all processes are there and wait for each other; the network may be down"


@contextmanager
def watched(world: World, seconds: float) -> Iterator[Watch]:
    """Watches the processes as long as the run goes on."""
    watch = Watch(world, seconds)
    try:
        yield watch
    finally:
        watch.ended.set()
