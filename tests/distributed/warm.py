"""Runs on several processes that start in milliseconds: one process has imported everything and forks them.

It does what `torchrun` does, without its restarts: where one process fails, the others are ended. Faults are injected
on request, each at the beginning of a step of one process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diptych.catalog import find_recipe
from diptych.data.workers import end_with
from diptych.recipes.override import override
from diptych.run import train
from diptych.schema import Recipe
from diptych.train.loop import Stepper
from tests.smoke.killable import OVERRIDES

PATIENCE, GRACE = 2.0, 5.0
"""Seconds after one process has failed until the others are asked to end, and until they are ended."""
LIMIT = 600.0
"""Seconds after which a run counts as hung, and is killed."""
LEAVE = 10.0
"""Seconds that workers have to end after their trainers."""
EVEN: dict[str, Any] = {"run": {**OVERRIDES["run"], "batch_size": 4, "timeout": 5.0, "device": "cpu"}}


def small(**changes: Any) -> Recipe:
    """Returns the small recipe of tests/smoke for an even number of processes; `__` stands for a dot."""
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    return override(find_recipe("albef_tiny"), {**OVERRIDES, **EVEN, **fields})


ALL = -1
PR_SET_CHILD_SUBREAPER = 36
"""Of Linux's prctl.h."""


@dataclass(frozen=True)
class Fault:
    """A fault of process `rank` (`ALL`: of each) at the beginning of its step `step` (from 0)."""

    what: str
    rank: int
    step: int


def _kill(stepper: Stepper) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(stepper: Stepper) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _terminate(stepper: Stepper) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _sleep(stepper: Stepper) -> None:
    time.sleep(60)


def _poison(stepper: Stepper) -> None:
    """Makes the loss of this process alone NaN."""
    forward = stepper.parallel.forward

    def poisoned(*args: Any) -> Any:
        losses = forward(*args)
        (_, term), *_ = losses.terms.values()
        term.sum.data.fill_(torch.nan)
        return losses

    stepper.parallel.forward = poisoned  # type: ignore[method-assign]


def _fill_disk(stepper: Stepper) -> None:
    """Lets no file of this process grow beyond a few bytes any more."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


FAULTS: dict[str, Callable[[Stepper], None]] = {
    "kill": _kill,
    "stop": _stop,
    "terminate": _terminate,
    "sleep": _sleep,
    "poison": _poison,
    "fill disk": _fill_disk,
}


def inject(fault: Fault) -> None:
    step = Stepper.step

    def disturbed(self: Stepper, loaded: Any, state: Any) -> Any:
        if state.step == fault.step:
            FAULTS[fault.what](self)
        return step(self, loaded, state)

    Stepper.step = disturbed  # type: ignore[method-assign]


def run(size: int, recipe: Recipe, folder: Path, resume: bool = False, fault: Fault | None = None) -> list[int]:
    """Trains and returns the exit statuses by rank, -9 for a kill. The output goes into `FOLDER.log`.

    Raises HungError for a run that does not end, and for processes that it has left behind; they are killed.
    """
    adopt_orphans()
    before = children_of(os.getpid())
    try:
        return _run(size, recipe, folder, resume, fault)
    finally:
        began = time.monotonic()
        while (left := children_of(os.getpid()) - before) and time.monotonic() - began < LEAVE:
            _reap(left)
            time.sleep(0.02)
        if left:
            _signal(list(left), signal.SIGKILL)
            raise HungError(f"{len(left)} processes of a run have not ended with it; see {folder.with_suffix('.log')}")


class HungError(Exception):
    """A run does not end, or some of its processes do not."""


def adopt_orphans() -> None:
    """Makes this process the parent of its descendants whose own parents are gone, so that none is overlooked."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of(process: int) -> set[int]:
    """Returns the processes whose parent is `process`."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return {int(child) for file in lists for child in file.read_text().split()}


def _reap(processes: set[int]) -> None:
    for process in processes:
        with suppress(ChildProcessError):
            os.waitpid(process, os.WNOHANG)


def _run(size: int, recipe: Recipe, folder: Path, resume: bool, fault: Fault | None) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    children = {_fork(rank, size, port, recipe, folder, resume, fault): rank for rank in range(size)}
    statuses: dict[int, int] = {}
    began, failed = time.monotonic(), None
    while len(statuses) < size:
        for process, rank in children.items():
            if rank not in statuses:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    statuses[rank] = os.waitstatus_to_exitcode(status)
        left = [process for process, rank in children.items() if rank not in statuses]
        if failed is None and any(statuses.values()):
            failed = time.monotonic()
        waited = 0.0 if failed is None else time.monotonic() - failed
        if waited > PATIENCE:
            _signal(left, signal.SIGTERM if waited < GRACE else signal.SIGKILL)
        if time.monotonic() - began > LIMIT:
            raise HungError(f"a run has not ended for {LIMIT:.0f} s; see {folder.with_suffix('.log')}")
        time.sleep(0.02)
    return [statuses[rank] for rank in range(size)]


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _fork(
    rank: int, size: int, port: int, recipe: Recipe, folder: Path, resume: bool, fault: Fault | None
) -> int:  # fmt: skip
    parent = os.getpid()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        end_with(parent)
        log = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
        torch.set_num_threads(1)
        if fault is not None and fault.rank in (rank, ALL):
            inject(fault)
        train(recipe, folder, resume)
        status = 0
    except (ValueError, OSError) as error:
        print(f"diptych: {error}", file=sys.stderr)
        status = 2
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    except BaseException as error:
        print(f"process {rank}: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
