"""Training with several processes, writing checkpoints, and resuming: `python -m benchmarks.scaling`

It trains `albef_tiny` on generated scenes, with all three losses from the first step, in alternating rounds. The rate
is that of the steps that a long run has more than a short one, in wall time. So writing checkpoints counts, and
starting Python does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SHORT, LONG, ROUNDS, BATCH = 5, 65, 2, 32
RECIPE = [
    "albef_tiny", "task.fuse_start=0", "task.momentum_start=0", f"run.batch_size={BATCH}", "run.device=cpu",
    "run.validate_every=0", "data.scenes.sprites=shapes",
]  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A way to carry out a training."""

    processes: int
    threads: int
    """Threads of each process."""
    fields: tuple[str, ...] = ()
    checkpoint_every: int = 1000


CORES = os.cpu_count() or 1
WAYS = {
    "1 process": Way(1, CORES),
    f"{CORES} processes, DDP": Way(CORES, 1),
    f"{CORES} processes, FSDP": Way(CORES, 1, ("run.parallel=fsdp",)),
    "checkpoint every 5 steps": Way(1, CORES, (), 5),
    "the same in the background": Way(1, CORES, ("run.checkpoint_async=true",), 5),
}
"""The others are compared with the first one."""


def command(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "diptych"]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "diptych"]


def call(way: Way, arguments: list[str]) -> float:
    """Runs a command of diptych and returns its seconds."""
    began = time.monotonic()
    subprocess.run(
        [*command(way.processes), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(way.threads)}, check=True, capture_output=True,
    )  # fmt: skip
    return time.monotonic() - began


def rate(way: Way, folder: Path) -> float:
    """Returns the pairs per second of a training, without its start."""
    fields = [*RECIPE, *way.fields, f"run.checkpoint_every={way.checkpoint_every}"]
    times = [
        call(way, ["train", *fields, f"run.steps={steps}", "--folder", str(folder / str(steps))])
        for steps in (SHORT, LONG)
    ]
    return BATCH * (LONG - SHORT) / (times[1] - times[0])


def measure() -> dict[str, float]:
    """Measures all ways, and how long resuming takes."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    resumes: list[float] = []
    helps: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        for turn in range(ROUNDS):
            for name, way in list(WAYS.items())[:: 1 if turn % 2 else -1]:
                rates[name].append(rate(way, Path(place) / f"{turn}-{name}"))
            alone = WAYS["1 process"]
            resumes.append(call(alone, ["resume", str(Path(place) / f"{turn}-1 process" / str(LONG))]))
            helps.append(call(alone, ["train", "--help"]))
    base = median(rates["1 process"])
    print(f"albef_tiny, {BATCH} pairs a step, {CORES} threads in all: pairs per second (median of {ROUNDS} rounds)")
    for name, measured in rates.items():
        print(f"  {name:<32} {median(measured):6.1f}  {100 * median(measured) / base:5.1f} %")
    resume = median(resumes) - median(helps)
    print(f"  resuming a run of {LONG} steps at its end: {median(resumes):.1f} s, {resume:.1f} s more than --help")
    medians = {f"scaling {name}": median(measured) for name, measured in rates.items()}
    return medians | {"resume seconds": median(resumes)}


if __name__ == "__main__":
    measure()
