"""Times jobs on a machine that others use too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

ROUNDS = 4


def least_seconds(job: Callable[[], object], device: torch.device | str = "cpu", rounds: int = ROUNDS) -> float:
    """Measures the seconds of a job as the best of some rounds, which repeat it for 10 ms at least."""
    best = math.inf
    for _ in range(rounds):
        start, runs = now(device), 0
        while runs == 0 or now(device) - start < 0.01:
            job()
            runs += 1
        best = min(best, (now(device) - start) / runs)
    return best


def now(device: torch.device | str = "cpu") -> float:
    """Reads a clock in seconds. One thread is timed on the processor, so that other processes do not count."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)  # a card works asynchronously
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()
