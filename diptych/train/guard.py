"""Protects a run: reproducible bits, one run in a folder, signals that stop it after saving, no non-finite numbers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from diptych.train.distributed import STOPS, World
from diptych.types import AnyBatch


@contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """Makes torch compute the same bits from the same inputs, with `threads` CPU threads (None: as many as before).

    Without this, the gradient of `x[index]` is added up in the order in which the threads arrive. Where a device has
    only an irreproducible way to compute something, torch warns and takes it.
    """
    old_threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic
    old_fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # it costs time, and only helps to find bugs
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(old_threads)
        torch.use_deterministic_algorithms(was_deterministic, warn_only=True)
        settings.fill_uninitialized_memory = old_fill


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Locks a run's folder. Raises ValueError if another process holds the lock.

    The lock ends with the process, however that ends, and loader workers do not inherit it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process trains in {folder}: wait for it, or stop it") from error
        yield


class StoppedWaiting(BaseException):
    """A signal has ended the wait for a batch. It is no Exception, which code that reads data might catch."""


class StopSignals:
    """Notes the first Ctrl-C or SIGTERM, so that the step can be finished and saved. The second one stops at once.

    It also breaks off a wait for data (`breaking_off`). A main thread that is blocked in a system call or in C++ code
    cannot answer, so that another thread can ask for the signal with `heard`.
    """

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._grace: float | None = None
        """Seconds from the signal until it breaks off the present wait; None where nothing is waited for."""
        self._pipe: tuple[int, int] | None = None
        """Receives the number of each signal at once, from Python's handler in C."""
        self._reading = threading.Lock()
        self._old_wakeup = -1
        self._heard: signal.Signals | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other thread
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            for number in STOPS:
                self._old_handlers[number] = signal.signal(number, self._note)
            self._old_handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._break_off)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._old_wakeup)
            with self._reading:
                pipe, self._pipe = self._pipe, None
            for end in pipe:
                os.close(end)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = signal.Signals(number)
        if self._grace is None and os.environ.get("RANK", "0") == "0":
            # Not `print`: the signal may have come in the middle of another one.
            text = f"{self.caught.name}: the run stops once this step is done, and at once after a second signal\n"
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), text.encode())
        self._set_alarm()

    @contextmanager
    def breaking_off(self, grace: float) -> Iterator[None]:
        """Lets a signal break off what this block waits for: `grace` seconds after it came, or at once for 0.

        Raises StoppedWaiting then.
        """
        self._grace = grace
        try:
            self._set_alarm()
            yield
        finally:
            self._grace = None
            if self._old_handlers:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _set_alarm(self) -> None:
        if self.caught is None or self._grace is None or not self._old_handlers:
            return
        if not self._grace:
            raise StoppedWaiting
        signal.setitimer(signal.ITIMER_REAL, self._grace)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        if self._grace is not None:
            raise StoppedWaiting

    def heard(self) -> signal.Signals | None:
        """Returns the signal that has come, even if the main thread could not answer it yet. Any thread may ask."""
        with self._reading, contextlib.suppress(BlockingIOError):  # none has come
            for number in os.read(self._pipe[0], 100) if self._pipe else b"":
                if number in STOPS:
                    self._heard = self._heard or signal.Signals(number)
        return self._heard


def refuse(world: World, loss: Tensor, norm: Tensor, step: int, batch: AnyBatch, rate: float) -> NoReturn:
    """Raises ValueError in all processes, naming the records of those whose loss is not finite.

    Where every loss is finite, the gradient is not, and each process names its own records. `step`: optimiser steps
    done before this one. `rate`: the learning rate of this one.
    """
    fault = None if torch.isfinite(loss) else (loss.item(), batch.records)
    faults = [(rank, *fault) for rank, fault in enumerate(world.gather(fault)) if fault is not None]
    if faults:
        quantity, value = "loss", faults[0][1]
        records = [record for _, _, batch_records in faults for record in batch_records]
    else:
        quantity, value, records = "gradient's norm", norm.item(), list(batch.records)
    if faults and world.size > 1:
        quantity += f" of process {', '.join(str(rank) for rank, *_ in faults)}"
    raise ValueError(
        f"not finite at step {step + 1}: the {quantity} is {value}; the weights are still those of step {step}."
        f" Lower optim.lr (the rate of this step is {rate:.3g}), lengthen schedule.warmup_steps or set optim.clip=1.0,"
        " and train anew, or from the last checkpoint with init_from. If a lower rate does not help, look at the"
        f" records of this batch. Records: {', '.join(records)}"
    )
