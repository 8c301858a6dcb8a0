"""Ends a run that waits too long for its data, its disk or another process, and says what is missing.

Otherwise all processes would wait for the one that hangs, and none could name it. A process alone waits for its data
and its disk only. A thread does this, because the main thread may be blocked in a system call or in the exchange of
tensors.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from diptych.data.workers import small_shared_memory
from diptych.train.distributed import World
from diptych.train.guard import StopSignals

EXIT_STATUS = 75
"""The exit status of a process that gives up waiting: a failure that may pass (EX_TEMPFAIL of sysexits.h). `torchrun`
then starts all processes anew."""
BEATS = 20
"""How many times in `seconds` a process signals that it lives."""
GRACE_BEATS = 4
"""How many beats of another process may be missing before it counts as silent."""
LOOK_SECONDS = 0.5
"""The longest time between two looks of the thread that judges."""
STOP_GRACE = 5.0
"""Seconds that a batch has to arrive after a signal to stop, where several processes should finish the step."""
STOP_SECONDS = 30.0
"""Seconds after a signal to stop until a wait that the main thread cannot break off ends the process. A step has twice
the time of the longest one so far, if that is more."""


class Watch:
    """Publishes this process's progress to the others, and ends it when a wait is longer than `seconds`.

    The main thread publishes the step that it has reached. A second thread publishes a beat, which shows that the
    process lives, and reads those of the others. A third one judges them once a step takes too long, or its data, or
    once a signal to stop is not answered.
    """

    def __init__(self, world: World, seconds: float, stop: StopSignals | None = None) -> None:
        self.world, self.seconds, self.stop = world, seconds, stop or StopSignals()
        self.reached = 0
        """The step whose tensors are exchanged with the others; 0 outside of that."""
        self.awaited = 0
        """The step whose data is waited for; 0 while none is."""
        self.saved = 0
        """The step whose checkpoint is waited for; 0 while none is."""
        self.since = time.monotonic()
        self.longest = 0.0
        """Seconds of the longest step so far, with the wait for its data."""
        self.ended = threading.Event()
        self.store: dist.Store | None = None
        self.heard: list[tuple[float, list[int]]] = []
        """The last readings of all processes' beats, each with its time."""
        self.steps: list[int] = []
        """The step that each process has reached."""
        if world.size > 1:
            self.store = _get_default_store()
            threading.Thread(target=self._beat, daemon=True).start()
        threading.Thread(target=self._judge, daemon=True).start()

    def awaits_data(self, step: int) -> None:
        """Notes that this process waits for the batch of `step`."""
        self.since = time.monotonic()  # before the step, which the other thread looks at first
        self.awaited = step

    def arrived(self, step: int) -> None:
        """Notes that this process has the batch of `step`, and will next exchange tensors with the others."""
        self.longest = max(self.longest, time.monotonic() - self.since)
        self.since = time.monotonic()
        self.awaited, self.reached = 0, step
        self._write("step", step)

    def left(self) -> None:
        """Notes that the step is done. A validation that follows may take any time."""
        self.longest = max(self.longest, time.monotonic() - self.since)
        self.reached = 0

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Notes that this process waits for the disk, which has twice the time for a checkpoint."""
        self.since = time.monotonic()
        self.saved = step
        try:
            yield
        finally:
            self.saved = 0

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
        """Ends this process, in a thread, when it waits too long, and prints what it waits for."""
        beat = self.seconds / BEATS
        stopped: float | None = None
        while not self.ended.wait(min(beat, LOOK_SECONDS)):
            now, awaited, saved, reached = time.monotonic(), self.awaited, self.saved, self.reached
            signalled = self.stop.heard()
            if signalled and stopped is None:
                stopped = now
            if not (awaited or saved or (reached and self.world.size > 1)):
                continue
            patience = max(STOP_SECONDS, 2 * self.longest)
            limit = 2 * self.seconds if saved else self.seconds
            if signalled and stopped is not None and not saved and now - max(stopped, self.since) > patience:
                fault, status = f"{signalled.name}, and no end of the wait for {patience:.0f} s", 128 + signalled
            elif now - self.since > limit + (GRACE_BEATS + 1) * beat:
                lacking, status = "batch" if awaited else "checkpoint" if saved else "step", EXIT_STATUS
                fault = f"no {lacking} for {limit:.0f} s ({'twice ' if saved else ''}run.timeout)"
            else:
                continue
            step = awaited or saved or reached
            print(f"diptych: {fault}, in step {step}: {self._waits_for(now)}", file=sys.stderr, flush=True)
            os._exit(status)

    def _waits_for(self, now: float) -> str:
        """Says what this process waits for."""
        if self.awaited:
            where = f" of process {self.world.rank}" if self.world.size > 1 else ""
            return (
                f"the data{where} does not come. Look at its storage, or raise run.timeout to wait longer"
                f"{small_shared_memory()}"
            )
        if self.saved:
            return "it is still being written. Look at the disk of the run's folder, and at the other processes"
        store_hangs = not self.heard or now - self.heard[-1][0] > GRACE_BEATS * self.seconds / BEATS
        before, last = ([], []) if store_hangs else (self.heard[0][1], self.heard[-1][1])
        return self.missing(self.reached, before, last, self.steps)

    def missing(self, step: int, before: list[int], now: list[int], steps: list[int]) -> str:
        """Names the processes that do not answer, or else those that have not reached the step of the others.

        `before` and `now`: the beats of all processes, at two times. They are empty where the first process, which
        keeps the store, does not answer.
        """
        silent = [rank for rank, (old, new) in enumerate(zip(before, now, strict=True)) if old == new] if now else [0]
        late = [rank for rank, reached in enumerate(steps) if reached < step]
        if silent:
            return f"process {', '.join(map(str, silent))} does not answer"
        if late:
            return f"process {', '.join(map(str, late))} has not got its data yet"
        return f"all processes are there and wait for each other; the network may be down{small_shared_memory()}"


@contextmanager
def watched(world: World, seconds: float, stop: StopSignals) -> Iterator[Watch]:
    """Watches this process and the others as long as the run goes on."""
    watch = Watch(world, seconds, stop)
    try:
        yield watch
    finally:
        watch.ended.set()
