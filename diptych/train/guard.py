"""What protects a run: the same bits on every run, one process at a time, a stop that saves, no number not finite."""

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
    """The same bits from the same inputs, with `threads` CPU threads (None: as they are).

    Without it the gradient of `x[index]` adds up in whatever order two threads arrive. Where a device has only one,
    irreproducible, way to compute something, torch warns and computes.
    """
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    filling: Any = torch.utils.deterministic
    fill = filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling.fill_uninitialized_memory = False  # costs time and finds bugs only
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=True)
        filling.fill_uninitialized_memory = fill


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Holds a run's folder. Raises ValueError if another process does.

    The lock goes with the process, however that ends, and loader workers do not inherit it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process trains in {folder}: wait for it, or stop it") from error
        yield


class StopSignals:
    """Notes the first Ctrl-C or SIGTERM, so that the step can be finished and saved; the second one stops at once."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = signal.Signals(number)


def exit_status(stopped: signal.Signals) -> int:
    """130 after Ctrl-C, 143 after SIGTERM, as shells have it."""
    return 128 + stopped


def refuse(world: World, loss: Tensor, norm: Tensor, step: int, batch: AnyBatch) -> NoReturn:
    """Raises ValueError in all processes, naming the records of those whose loss is not finite.

    Where every loss is, it is the gradient that is not. `step`: optimiser steps done before.
    """
    own = None if torch.isfinite(loss) else (loss.item(), batch.records)
    found = [(rank, *one) for rank, one in enumerate(world.exchange(own)) if one is not None]
    what, value = ("loss", found[0][1]) if found else ("gradient's norm", norm.item())
    if found and world.size > 1:
        what += f" of process {', '.join(str(rank) for rank, *_ in found)}"
    names = ", ".join(name for records in ([one[2] for one in found] or [batch.records]) for name in records)
    raise ValueError(
        f"the {what} of step {step + 1} is {value}; the weights are still those of step {step}."
        " Look at the records of its batch, lower optim.lr or set optim.clip, and go on from the last checkpoint."
        f" Records: {names}"
    )
