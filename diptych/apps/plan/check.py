"""Real steps to check a plan: one process measures memory and another one time, both at the plan's batch size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from diptych import catalog
from diptych.apps.plan.count import make_batch, plain_tokenizer, plannable
from diptych.apps.plan.machine import PeakMemory, now, status
from diptych.apps.plan.predict import AFTER, Plan, Wish
from diptych.data.record import PairStatement
from diptych.device import find_device
from diptych.nn.queue import FeatureQueue
from diptych.places import TRUST, allow
from diptych.schema import AlbefConfig, Recipe
from diptych.serialize import from_dict, places_of, to_dict
from diptych.task import Task
from diptych.train.distributed import World
from diptych.train.freeze import freeze
from diptych.train.loop import forward_backward
from diptych.train.memory import trim
from diptych.train.optim import build_optimizer
from diptych.train.parallel import ParallelTask
from diptych.types import Progress, to_device

RETURNED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_MMAP_MAX_": str(1 << 30)}
"""Settings that make glibc return freed memory at once. Resident memory is in use then; else peaks vary by half."""
BUSY = 0.9
"""Share of the time for which a process must have had the processor, so that the wall clock counts."""


@dataclass(frozen=True)
class Compared:
    """Planned and measured values: bytes of `memory`, seconds of a `step`."""

    steps: int
    rows: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...]


def check(recipe: Recipe, wish: Wish, plan: Plan, steps: int) -> Compared:
    """Runs real steps at the plan's batch size in other processes. Raises ValueError where they fail."""
    memory = in_process("memory", recipe, plan.tokens, 1, RETURNED_MEMORY)
    timed = in_process("time", recipe, plan.tokens, steps, {})
    single, share = timed["threads"] == 1, timed["processor"] / timed["wall"]
    busy = single and share < BUSY
    measured = timed["processor"] if busy else timed["wall"]
    notes = ["measured memory is the growth of the process since a small step loaded all libraries"]
    if busy:
        notes.append(
            f"the step had the processor for only {share:.0%} of {timed['wall']:.3g} s, so its processor time is shown"
        )
    return Compared(steps, {"memory": (plan.total, memory["bytes"]), "step": (plan.step, measured)}, tuple(notes))


def in_process(what: str, recipe: Recipe, tokens: int, steps: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """Runs `main` in a new process to measure `what`. Raises ValueError where the process fails."""
    request = {"recipe": to_dict(recipe), "tokens": tokens, "steps": steps, "threads": torch.get_num_threads()}
    command = [sys.executable, "-m", "diptych.apps.plan.check", what]
    allow(places_of(recipe))  # here, where somebody can be asked, and not in that process
    ended = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True,
        env=os.environ | {TRUST: "trusted"} | dict(environment),
    )  # fmt: skip
    if ended.returncode:
        killed = "the process was killed, probably for lack of memory; try a smaller run.batch_size"
        last = ended.stderr.strip().splitlines()[-1:] or [killed]
        raise ValueError(f"the steps could not be run here: {last[0]}")
    measures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return measures


# --------------------------------------------------------------------------- within the process


def real_step(recipe: Recipe, tokens: int) -> tuple[Task, Callable[[], None]]:
    """Builds a task with random weights and a full queue, and a function that makes one optimiser step with it."""
    recipe, device = plannable(recipe), find_device(recipe.run.device)
    words, side = plain_tokenizer(recipe), recipe.model.image_size
    size = recipe.run.batch_size * recipe.optim.accumulate
    task = catalog.build_task(recipe, words).to(device).train()
    if recipe.freeze:
        freeze(task, recipe.freeze)
    _fill_queues(task)
    parallel = ParallelTask.of(task, recipe, World())
    parameters = parallel.parameters()
    optimizer = build_optimizer(task, recipe.optim, parameters, recipe.released, recipe.run.precision)
    pictures = 2 if catalog.record_kind(recipe.task) is PairStatement else 1
    pixels = torch.randn(pictures, size, 3, side, side).unbind()
    batch = to_device(make_batch(recipe, pixels, tokens, words), device)
    progress = Progress(AFTER, float(AFTER), recipe.run.seed)

    def step() -> None:
        task.before_step()
        losses = forward_backward(parallel, batch, progress, recipe.run)
        parallel.gradient_norm(parameters, recipe.optim.clip)
        optimizer.step()
        parallel.clear_gradients(parameters)
        task.after_step(losses.carry)

    return task, step


def _fill_queues(task: Task) -> None:
    for part in task.modules():
        if isinstance(part, FeatureQueue):
            for ring in (part.image, part.text):
                ring.copy_(F.normalize(torch.randn_like(ring), dim=1))
            part.filled.fill_(part.size)
            part.ids.copy_(-1 - torch.arange(part.size))


def memory_of_steps(recipe: Recipe, tokens: int) -> int:
    """Measures the peak memory of the second step, beyond that of a process that has made a small step.

    On a card it is what torch has allocated there.
    """
    device = find_device(recipe.run.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _, step = real_step(recipe, tokens)
        step()
        step()
        return torch.cuda.max_memory_allocated(device) - before
    tiny = "albef_tiny" if isinstance(recipe.model, AlbefConfig) else "vlmo_tiny"
    _small_step(tiny)
    trim()
    before = status("VmRSS")
    _, step = real_step(recipe, tokens)
    step()
    with PeakMemory() as watched:
        step()
    return watched.before + watched.grown - before


def _small_step(name: str) -> None:
    """Makes a small step, so that all libraries are loaded."""
    recipe = catalog.find_recipe(name)
    real_step(replace(recipe, run=replace(recipe.run, batch_size=4)), 8)[1]()


def time_of_steps(recipe: Recipe, tokens: int, steps: int) -> dict[str, float]:
    """Measures the median seconds of a step by the wall clock and on the processor. The first step does not count."""
    _, step = real_step(recipe, tokens)
    return timed(step, steps, find_device(recipe.run.device))


def timed(step: Callable[[], None], steps: int, device: torch.device) -> dict[str, float]:
    """Measures the median seconds of so many steps, as `time_of_steps` does."""
    step()
    now(device)
    walls, processors = [], []
    for _ in range(steps):
        wall, processor = time.perf_counter(), time.process_time()
        step()
        now(device)
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return {"wall": median(walls), "processor": median(processors)}


def main(what: str) -> None:
    """Reads a request as JSON from stdin and prints the measures as JSON."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    recipe, measures = from_dict(request["recipe"]), {"threads": request["threads"]}
    if what == "memory":
        measures["bytes"] = memory_of_steps(recipe, request["tokens"])
    else:
        measures |= time_of_steps(recipe, request["tokens"], request["steps"])
    print(json.dumps(measures))


if __name__ == "__main__":
    main(sys.argv[1])
