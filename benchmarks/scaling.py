"""Several processes, checkpoints, resuming: `python -m benchmarks.scaling`.

Trainings of `albef_tiny` on made scenes, all three losses from the first step, each in processes of its own, in
alternating rounds. A rate is that of the steps by which a long run is longer than a short one, by the clock on the
wall: so writing checkpoints counts, starting Python does not.
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
    """How a training is carried out."""

    processes: int
    threads: int
    """Of each."""
    fields: tuple[str, ...] = ()
    checkpoint_every: int = 1000


CORES = os.cpu_count() or 1
WAYS = {
    "1 process": Way(1, CORES),
    f"{CORES} processes, DDP": Way(CORES, 1),
    f"{CORES} processes, FSDP": Way(CORES, 1, ("run.parallel=fsdp",)),
    "checkpoint every 5 steps": Way(1, CORES, (), 5),
    "the same beside the training": Way(1, CORES, ("run.checkpoint_async=true",), 5),
}
"""The first is what the others are compared with."""


def command(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "diptych"]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "diptych"]


def call(way: Way, arguments: list[str]) -> float:
    """Seconds of the whole command."""
    began = time.monotonic()
    subprocess.run(
        [*command(way.processes), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(way.threads)}, check=True, capture_output=True,
    )  # fmt: skip
    return time.monotonic() - began


def rate(way: Way, folder: Path) -> float:
    """Pairs a second of a training, its start left out."""
    fields = [*RECIPE, *way.fields, f"run.checkpoint_every={way.checkpoint_every}"]
    taken = [
        call(way, ["train", *fields, f"run.steps={steps}", "--folder", str(folder / str(steps))])
        for steps in (SHORT, LONG)
    ]
    return BATCH * (LONG - SHORT) / (taken[1] - taken[0])


def measure() -> dict[str, float]:
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
    print(f"albef_tiny, {BATCH} pairs a step, {CORES} threads in all: pairs a second (median of {ROUNDS} rounds)")
    for name, found in rates.items():
        print(f"  {name:<32} {median(found):6.1f}  {100 * median(found) / base:5.1f} %")
    resume = median(resumes) - median(helps)
    print(f"  resuming a run of {LONG} steps at its end: {median(resumes):.1f} s, {resume:.1f} s more than --help")
    return {f"scaling {name}": median(found) for name, found in rates.items()} | {"resume seconds": median(resumes)}


if __name__ == "__main__":
    measure()
