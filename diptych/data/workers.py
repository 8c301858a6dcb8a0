"""Runs worker processes, which leave signals to the main process and end with it."""

from __future__ import annotations

import os
import shutil
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
"""How worker processes are started. A fork takes milliseconds and works from scripts without a `__main__` guard. It is
safe here, because workers use one thread, no OpenMP and no GPU. Other platforms than Linux use their default."""

SMALL = 64 << 20
"""Bytes of free shared memory, as much as Docker gives, up to which messages mention it."""


def begin_worker(parent: int, _: int = 0) -> None:
    """Makes this process ignore Ctrl-C and the first SIGTERM, and end when its parent process is gone.

    The parent saves its state and then ends its workers. Both signals often reach the whole process group, and a worker
    that died of them would make the parent lose the step that it is saving.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.set_wakeup_fd(-1)  # the parent's, which a signal to this process must not wake
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    end_with(parent)


def end_with(parent: int) -> None:
    """Lets a thread end this process, without any of its own work, when its parent process is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def processors() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def small_shared_memory() -> str:
    """Says how much shared memory is free, and how a container gets more, where it is little; else nothing."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return ""
    if free > SMALL:
        return ""
    return f". /dev/shm has {free >> 10} kB free; a container gets more by --shm-size=1g or --ipc=host"


def each_in_parallel(work: Callable[[Job], Result], jobs: Iterable[Job], processes: int) -> Iterator[Result]:
    """Yields `work(job)` of each job, in the order in which they finish. One process means this process.

    Forked workers inherit `work`, so it need not be picklable there. Raises RuntimeError if a worker was killed; what
    other workers have written stays. Where shared memory has no room for the locks of processes, this one does all.
    """
    pool = _pool(work, processes) if processes > 1 else None
    if pool is None:
        yield from map(work, jobs)
        return
    with pool:
        pending, remaining = set[Future[Result]](), iter(jobs)
        try:
            while True:
                pending |= {pool.submit(_do, job) for job in islice(remaining, 2 * processes - len(pending))}
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise RuntimeError(
                "a process of this work was killed, perhaps for want of memory; start again, and it goes on"
            ) from None
        finally:
            for future in pending:
                future.cancel()


def _pool(work: Callable[..., object], processes: int) -> ProcessPoolExecutor | None:
    """Returns a pool of processes, or None, and says why, where shared memory is full."""
    try:
        return ProcessPoolExecutor(
            processes, get_context(START), initializer=_begin_job, initargs=(os.getpid(), work)
        )  # fmt: skip
    except OSError as error:
        print(f"one process works instead of {processes} ({error}){small_shared_memory()}", file=sys.stderr)
        return None


_WORK: list[Callable[..., object]] = []


def _begin_job(parent: int, work: Callable[..., object]) -> None:
    begin_worker(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an interrupted job leaves no file that looks complete
    _WORK.append(work)


def _do(job: Any) -> Any:
    return _WORK[0](job)
