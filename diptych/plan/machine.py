"""What this machine can do, measured now: matrix products, memory, and the operations that cost more than their bytes.

Each is the best of a few rounds, so that other processes on the machine disturb little.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

SQUARES = tuple((size, size, size) for size in (1024, 2048, 4096))
ROUNDS = 4


def peak(
    dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]] = SQUARES, device: torch.device | str = "cpu"
) -> float:
    """FLOP/s of the best of some matrix products [m, k] × [k, n]; without `shapes` square ones of 1024 to 4096."""
    best = 0.0
    for m, k, n in shapes:
        a, b = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (k, n)))
        best = max(best, 2 * m * k * n / least_seconds(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return best


def least_seconds(job: Callable[[], object], device: torch.device | str = "cpu", rounds: int = ROUNDS) -> float:
    """The shortest of some runs."""
    taken = []
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        job()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _wait(device: torch.device | str) -> None:
    """A graphics card works on while Python does: until it is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


# --------------------------------------------------------------------------- memory of a process


class PeakMemory:
    """Most resident memory within the block beyond what was resident at its start, in bytes. Linux only."""

    grown: int

    def __enter__(self) -> PeakMemory:
        gc.collect()
        trim()
        Path("/proc/self/clear_refs").write_text("5")
        self.before = status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown = status("VmHWM") - self.before


def status(name: str) -> int:
    """A size in bytes that Linux keeps of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def trim() -> None:
    """Gives freed memory back to the system, so that what is resident is what is used."""
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)
