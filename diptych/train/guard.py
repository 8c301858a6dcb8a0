"""Protects a run: reproducible bits, one run in a folder, signals that stop it after saving, no non-finite numbers."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from diptych.train.distributed import World
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


class StopSignals:
    """Notes the first Ctrl-C or SIGTERM, so that the step can be finished and saved. The second one stops at once."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = signal.Signals(number)


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
