"""Computes a sequence of results in worker processes and hands them over in order.

Results come through pipes, and nothing here needs shared memory. Containers have little of it (Docker gives /dev/shm
64 MB), and a worker that finds it full could only fail. A tensor is written to the pipe as it lies in memory, and a
thread of the receiving process reads it while that one computes.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import os
import pickle
import queue
import select
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from diptych.data.workers import START, begin_worker, small_shared_memory

Job = TypeVar("Job")
Result = TypeVar("Result")

AHEAD = 2
"""Jobs that each worker has at a time: the one whose result is awaited, and the next."""
END_SECONDS = 3.0
"""The time that workers have to finish their jobs when the pool is closed. They are killed after that."""
PIPE_BYTES = 1 << 20
"""Size of a pipe's buffer, the largest that Linux lets every user have."""


class PoolError(OSError):
    """A worker has ended, or hands nothing over in time."""


class OrderedPool(Generic[Job, Result]):
    """Computes `work(job)` of jobs without end in worker processes, and returns the results in the order of the jobs.

    Worker i computes the jobs i, i + workers, i + 2 workers and so on. Forked workers inherit `work`, so it need not be
    picklable there.
    """

    def __init__(self, work: Callable[[Job], Result], jobs: Iterator[Job], workers: int) -> None:
        self._workers = [_Worker(number, work) for number in range(workers)]
        self._jobs = jobs
        for worker in self._workers:  # only now, because a fork should copy no thread
            worker.reader.start()
        for _ in range(AHEAD):
            for worker in self._workers:
                worker.requests.send(next(jobs))

    def results(self, seconds: float) -> Iterator[Result]:
        """Yields the results.

        Raises PoolError, which says what is known of the worker, if the next one takes longer than `seconds` or its
        worker has ended. An exception of `work` is raised here, with the worker's traceback as a note.
        """
        for number in count():
            worker = self._workers[number % len(self._workers)]
            result: Result = worker.take(seconds)
            with contextlib.suppress(BrokenPipeError):  # it has ended since, which the next `take` of it tells
                worker.requests.send(next(self._jobs))
            yield result

    def close(self) -> None:
        """Ends the workers. Each may finish the job that it has begun."""
        for worker in self._workers:
            worker.ask_to_end()
        deadline = time.monotonic() + END_SECONDS
        for worker in self._workers:
            worker.end(max(0.0, deadline - time.monotonic()))


class _Worker:
    """A worker process with its two pipes, as the process that started it sees them."""

    def __init__(self, number: int, work: Callable[[Any], Any]) -> None:
        context = get_context(START)
        self.number = number
        self.outcomes = queue.SimpleQueue[Any]()
        """What the worker has handed over: (result, None), (None, exception), or None once it has ended."""
        requests, self.requests = context.Pipe(duplex=False)
        self.results, results = context.Pipe(duplex=False)
        _widen(results)
        self.process: Any = context.Process(  # type: ignore[attr-defined]  # the default context has it, too
            target=_serve, args=(work, requests, results, os.getpid()), daemon=True
        )
        self.process.start()
        for end in (requests, results):  # the worker's ends: once it has closed its own, reading ends
            end.close()
        self.reader = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        """Reads what the worker hands over, in a thread, until the worker ends."""
        while True:
            try:
                outcome = receive(self.results)
            except (EOFError, OSError):
                self.outcomes.put(None)
                return
            except Exception as error:  # a message that cannot be unpickled must not leave its reader waiting
                outcome = None, error
            self.outcomes.put(outcome)

    def take(self, seconds: float) -> Any:
        """Returns the next result. Raises PoolError, or the exception of the job."""
        try:
            outcome = self.outcomes.get(timeout=seconds)
        except queue.Empty:
            raise PoolError(
                f"no batch for {seconds:.0f} s (run.timeout): worker {self.number} of the loader"
                f" (process {self.process.pid}) {_state(self.process.pid)}. Look at the storage of the data; raise"
                f" run.timeout to wait longer, or load in the training process (data.workers=0){small_shared_memory()}"
            ) from None
        if outcome is None:
            self.outcomes.put(None)
            self.process.join(END_SECONDS)
            raise PoolError(
                f"worker {self.number} of the loader {_ending(self.process.exitcode)}: lower data.workers, or load in"
                f" the training process (data.workers=0){small_shared_memory()}"
            )
        result, error = outcome
        if error is not None:
            raise error
        return result

    def ask_to_end(self) -> None:
        """Tells the worker to end, unless it has not even read what was sent to it before."""
        _, writable, _ = select.select([], [self.requests], [], 0)
        if writable:
            with contextlib.suppress(OSError):
                self.requests.send(None)

    def end(self, seconds: float) -> None:
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        if self.reader.ident is not None:
            self.reader.join(END_SECONDS)
        self.requests.close()
        self.results.close()


def _serve(work: Callable[[Any], Any], requests: Connection, results: Connection, parent: int) -> None:
    """Computes jobs in a worker process until None stands among them."""
    begin_worker(parent)
    torch.set_num_threads(1)
    pending: deque[Any] = deque()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent process has gone, or does not listen any more
        while True:
            while not pending or requests.poll():
                pending.append(requests.recv())
                if pending[-1] is None:
                    return
            try:
                outcome = _packed((work(pending.popleft()), None))
            except Exception as error:
                outcome = _packed((None, _portable(error)))
            _write(results, outcome)


def _portable(error: Exception) -> Exception:
    """Returns the exception, with its traceback as a note, or one of the same words where it cannot be pickled."""
    error.add_note(f"in a worker of the loader:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# --------------------------------------------------------------------------- messages


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, whose memory then need not be copied into the stream."""

    dispatch_table = copyreg.dispatch_table | {Tensor: lambda tensor: (torch.from_numpy, (tensor.numpy(),))}


def send(end: Connection, value: Any) -> None:
    """Writes a value to a pipe. Tensors must be on the CPU and need no gradient."""
    _write(end, _packed(value))


def _packed(value: Any) -> tuple[bytes, list[memoryview]]:
    """Pickles a value. Returns the stream, and the memory of the tensors, which stands outside it."""
    stream, views = io.BytesIO(), list[memoryview]()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL, buffer_callback=lambda buffer: views.append(buffer.raw())).dump(value)
    return stream.getvalue(), views


def _write(end: Connection, packed: tuple[bytes, list[memoryview]]) -> None:
    stream, views = packed
    end.send_bytes(pickle.dumps((stream, [len(view) for view in views])))
    for view in views:
        while view:
            view = view[os.write(end.fileno(), view) :]


def receive(end: Connection) -> Any:
    """Reads the next value from a pipe. Raises EOFError when the other end is closed."""
    stream, lengths = pickle.loads(end.recv_bytes())
    buffers = []
    for length in lengths:
        view = memoryview(torch.empty(length, dtype=torch.uint8).numpy().data)  # aligned as torch's own tensors are
        buffers.append(view)
        while view:
            read = os.readv(end.fileno(), [view])
            if not read:
                raise EOFError
            view = view[read:]
    return pickle.loads(stream, buffers=buffers)


def _widen(end: Connection) -> None:
    """Enlarges the buffer of a pipe where the system allows it, so that fewer calls carry a batch."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(end.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


# --------------------------------------------------------------------------- what is told of a worker


def _state(process: int) -> str:
    """Says what a process does, as far as the system tells."""
    try:
        letter = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        letter = ""
    states = {"T": "is stopped (SIGSTOP)", "t": "is being traced", "D": "waits for a disk or a network file system"}
    return states.get(letter, "is alive but hands nothing over")


def _ending(status: int | None) -> str:
    """Says how a process ended, by its exit status."""
    if status is None or status >= 0:
        return f"has ended with status {status}" if status is not None else "has closed its pipe"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    reasons = {
        "SIGKILL": ", perhaps for want of memory",
        "SIGBUS": ", as where a file that it maps has been cut short, or /dev/shm is full",
    }
    return f"was ended by {name}{reasons.get(name, '')}"
