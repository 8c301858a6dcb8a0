"""Processes beside the main one: they leave signals to it and end with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

START = "fork" if sys.platform == "linux" else None
"""A fork starts in milliseconds and works from scripts without a `__main__` guard. It is safe here: such processes use
one thread, no OpenMP and no GPU. Elsewhere than on Linux the platform's own way."""


def begin_worker(parent: int, _: int = 0) -> None:
    """Leave Ctrl-C and the first SIGTERM to the parent process, which saves and then ends its workers.

    Both often reach the whole process group; a worker that died of them would take the step being saved with it.
    When the parent is gone, the worker goes too.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """torch's own watch looks between two batches, and never gets there where the trainer was killed while it held a
    lock that both share."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def each_in_parallel(work: Callable[[Job], Result], jobs: Iterable[Job], processes: int) -> Iterator[Result]:
    """`work` of each job, as they end; in this process if `processes` is 1. `work` reaches a fork as it is.

    Raises RuntimeError where a process was killed: what others have written stays.
    """
    if processes <= 1:
        yield from map(work, jobs)
        return
    pool = ProcessPoolExecutor(
        processes, get_context(START), initializer=_begin_job, initargs=(os.getpid(), work)
    )  # fmt: skip
    with pool:
        waiting, remaining = set[Future[Result]](), iter(jobs)
        try:
            while True:
                waiting |= {pool.submit(_do, job) for job in islice(remaining, 2 * processes - len(waiting))}
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        except BrokenProcessPool:
            raise RuntimeError(
                "a process of this work was killed, perhaps for want of memory; start again, and it goes on"
            ) from None
        finally:
            for one in waiting:
                one.cancel()


_WORK: list[Callable[..., object]] = []


def _begin_job(parent: int, work: Callable[..., object]) -> None:
    begin_worker(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing half-written is taken for whole, so these may simply end
    _WORK.append(work)


def _do(job: Any) -> Any:
    return _WORK[0](job)
