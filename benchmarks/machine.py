"""Times jobs fairly against each other, and against the best that the machine can do."""

from __future__ import annotations

import gc
import math
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
TARGETS = {
    "pretrain fp32": 1.18, "pretrain bf16": 2.3, "rerank fp32": 7.0, "rerank bf16": 12.0, "retrieval fp32": 7.0,
    "vlmo fp32": 1.12, "vlmo bf16": 2.0,
}  # fmt: skip
"""How many times as fast as the plain procedure in fp32 ours should be."""


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for bf16. Without them it is emulated, and slow."""
    flags = _cpuinfo()
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


@dataclass(frozen=True)
class Measured:
    """The median seconds of a job over the rounds, and those of each round."""

    seconds: float
    rounds: tuple[float, ...]

    def times(self, factor: float) -> Measured:
        """Multiplies all times."""
        return Measured(self.seconds * factor, tuple(factor * taken for taken in self.rounds))


def interleaved(
    jobs: Mapping[str, Callable[[], object]],
    rounds: int = ROUNDS,
    device: torch.device | str = "cpu",
    seconds: float = math.inf,
) -> dict[str, Measured]:
    """Times the jobs in turn, A B C A B C …, so that all see the same machine. The first turn does not count.

    Jobs whose names end with `bf16` are left out on a processor that only emulates it. After `seconds`, no further
    round begins; one is always measured.
    """
    emulates = torch.device(device).type == "cpu" and not multiplies_bf16()
    jobs = {name: job for name, job in jobs.items() if not (emulates and name.endswith("bf16"))}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    began = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 1 and time.perf_counter() - began > seconds:
            break
        for name, job in jobs.items():
            gc.collect()
            finish(device)
            start = time.perf_counter()
            job()
            finish(device)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: Measured(median(taken), tuple(taken)) for name, taken in times.items()}


def finish(device: torch.device | str) -> None:
    """Waits until a card, which works asynchronously, has done all that it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def portions(job: Callable[[slice], object], count: int = ROUNDS) -> Callable[[], object]:
    """Makes a job of which each call does another of `count` portions: items 0, count, 2 count …, then 1, 1 + count …

    It spreads a procedure that is too slow for every round over the rounds. Its time is that of a round times `count`.
    """
    turns = cycle(slice(first, None, count) for first in range(count))
    return lambda: job(next(turns))


def ratio(slower: Measured, faster: Measured) -> float:
    """Returns how many times as fast `faster` is: the median of the ratios within a round."""
    return median(a / b for a, b in zip(slower.rounds, faster.rounds, strict=True))


def flops(job: Callable[[], object]) -> int:
    """Counts the floating-point operations of a job."""
    return counted(job)[0]


def report(what: str, operations: dict[str, int], times: dict[str, Measured]) -> dict[str, float]:
    """Prints times, shares of the machine's peak, and how many times as fast as the plain side ours is.

    `operations`: the FLOPs of `plain` and `ours`. The names of `times` are a side and a precision, as in `ours bf16`.
    """
    peaks = {"fp32": peak(torch.float32), "bf16": peak(torch.bfloat16)}
    results: dict[str, float] = {f"{what} flop ratio": operations["plain"] / operations["ours"]}
    for name, measured in times.items():
        side, precision = name.split()
        rate = operations[side] / measured.seconds
        rounds = " ".join(f"{seconds:.2f}" for seconds in measured.rounds)
        print(
            f"  {name:10}  {measured.seconds:7.2f} s  {operations[side] / 1e9:7.0f} GFLOP  {rate / 1e9:6.0f} GFLOP/s"
            f" = {rate / peaks[precision]:4.0%} of {peaks[precision] / 1e9:.0f}   [{rounds}]"
        )
        results[f"{what} {name} share of peak"] = rate / peaks[precision]
    fair = (operations["plain"] / times["plain fp32"].seconds) / (operations["ours"] / times["ours fp32"].seconds)
    print(f"  plain reaches {fair:.0%} of our FLOP/s in fp32 (fair from 85 %)")
    for precision in ("fp32", "bf16"):
        if f"ours {precision}" in times:
            speed = ratio(times["plain fp32"], times[f"ours {precision}"])
            target = TARGETS.get(f"{what} {precision}", "none")
            allowed = results[f"{what} flop ratio"]
            print(f"  {precision}: {speed:.2f}x as fast as plain fp32 (target {target}; FLOPs alone {allowed:.2f}x)")
            results[f"{what} {precision} ratio"] = speed
    return results


def describe() -> str:
    """Names the processor, its cores and threads, and the version of torch."""
    names = [line.split(":")[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    model = names[0] if names else "unknown processor"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
