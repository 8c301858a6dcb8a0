"""What the machine can do at best, and a fair way to time things against each other."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import torch

from diptych.apps.plan.check import RETURNED_MEMORY as RETURNED_MEMORY
from diptych.apps.plan.machine import PeakMemory as PeakMemory
from diptych.apps.plan.machine import peak as peak
from diptych.train.flops import counted as counted

ROUNDS = 5


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for it: without them bf16 is emulated and slow."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


@dataclass(frozen=True)
class Measured:
    """Median seconds over the rounds, and all of them."""

    seconds: float
    rounds: tuple[float, ...]

    def times(self, factor: float) -> Measured:
        return Measured(self.seconds * factor, tuple(factor * taken for taken in self.rounds))


def interleaved(jobs: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, Measured]:
    """Times the jobs in turn, A B C A B C …, after one turn that does not count, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            gc.collect()
            start = time.perf_counter()
            job()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: Measured(median(taken), tuple(taken)) for name, taken in times.items()}


def portions(job: Callable[[slice], object], count: int = ROUNDS) -> Callable[[], object]:
    """A job that does the next of `count` portions, each call: items 0, count, 2 count … then 1, 1 + count …

    So a procedure too slow for every round is spread over them; its time is a round's times `count`.
    """
    turns = cycle(slice(first, None, count) for first in range(count))
    return lambda: job(next(turns))


def ratio(one: Measured, other: Measured) -> float:
    """How many times faster `other` is: the median of the ratios of neighbours."""
    return median(a / b for a, b in zip(one.rounds, other.rounds, strict=True))


def flops(job: Callable[[], object]) -> int:
    return counted(job)[0]


def describe() -> str:
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    model = names[0] if names else "unknown processor"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
