"""The training loop. It knows no model: a task gives losses, this moves the weights.

A run killed at any moment and resumed ends with the same bits: each random draw is a pure function of (seed, step,
micro-batch), the order of the data one of the step, and whatever else has memory is in the checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from diptych.data.loader import Loaded, SkipLedger
from diptych.schema import Recipe, RunConfig
from diptych.seeds import seed_of
from diptych.task import Task
from diptych.train.guard import StopSignals, reproducible, require_finite, sole_user
from diptych.train.log import RunLog, StepReport, detached, require_tensorboard
from diptych.train.optim import build_optimizer, gradient_norm, learning_rate
from diptych.train.state import Plan, RunState, RunStore
from diptych.types import AnyBatch, Losses, Progress, to_device


@runtime_checkable
class Loader(Protocol):
    """What the loop needs of a loader (data.loader.PairLoader)."""

    ledger: SkipLedger

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, start_step: int) -> Iterator[Loaded]: ...


@dataclass(frozen=True)
class Validation:
    """What is measured every `run.validate_every` steps. The checkpoint where `maximise` was highest is kept."""

    measure: Callable[[], Mapping[str, float]]
    maximise: str


def train(
    task: Task,
    loader: Loader,
    recipe: Recipe,
    folder: Path,
    *,
    validation: Validation | None = None,
    save_tokenizer: Callable[[Path], object] | None = None,
    resume: bool = False,
) -> Path:
    """Trains `task`, which is on its device already, and returns the last checkpoint.

    Raises ValueError for a folder that holds another run, a loss or gradient that is not finite (before it reaches the
    weights), too many unreadable records, a full disk. Ctrl-C and SIGTERM save, say how to go on and raise SystemExit.
    """
    plan = Plan.of(recipe, loader.steps_per_epoch)
    if recipe.run.tensorboard:
        require_tensorboard()
    optimizer = build_optimizer(task, recipe.optim)
    store = RunStore(folder, recipe, task, optimizer, loader.ledger, save_tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_user(folder):
        state = store.open(resume)
        batches = loader.batches(state.step * plan.accumulate)
        task.train()
        with reproducible(recipe.run.threads), RunLog(folder, plan, state, recipe.run) as log, StopSignals() as stop:
            while not plan.ended(state):
                report = optimise(task, optimizer, batches, plan, state, recipe)
                state = state.after_step(report.pairs, report.seconds)
                log.step(report, state)
                if validation and plan.validates(state.step):
                    began = time.monotonic()
                    measures = measure(task, validation)
                    state = state.after_validation(measures[validation.maximise], time.monotonic() - began)
                    log.validation(measures, validation.maximise, state)
                if plan.saves(state) or stop.caught:
                    store.save(state, plan.epoch(state.step))
                if stop.caught and not plan.ended(state):
                    log.say(f"{stop.caught.name}: step {state.step} is saved. Go on with: diptych resume {folder}")
                    raise SystemExit(stop.exit_status)
            log.say(f"{state.step} steps, {loader.ledger.summary()}")
    return store.newest()


def optimise(
    task: Task,
    optimizer: torch.optim.Optimizer,
    loaded: Iterator[Loaded],
    plan: Plan,
    state: RunState,
    recipe: Recipe,
) -> StepReport:
    """One optimiser step: the mean of the micro-batches' losses, each with its own negatives."""
    optim, run = recipe.optim, recipe.run
    began = time.monotonic()
    progress = Progress(state.step, plan.epoch(state.step), run.seed)
    rate = learning_rate(state.step, optim.lr, recipe.schedule, plan.steps, plan.steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    task.before_step()
    asked = time.monotonic()
    batches = [next(loaded).batch for _ in range(plan.accumulate)]
    waiting = time.monotonic() - asked
    losses = [
        forward_backward(task, batch, replace(progress, micro=micro), run, share=1 / plan.accumulate)
        for micro, batch in enumerate(batches)
    ]
    norm = gradient_norm(task, optim.clip)
    require_finite("gradient's norm", norm, state.step, batches)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    task.after_step([found.carry for found in losses])
    pairs, seconds = sum(map(len, batches)), time.monotonic() - began
    return StepReport(rate, norm, [detached(found) for found in losses], pairs, seconds, waiting)


def forward_backward(task: Task, batch: AnyBatch, progress: Progress, run: RunConfig, share: float) -> Losses:
    """Adds the gradient of `share` of the loss. Dropout depends on (seed, step, micro-batch) and nothing before."""
    device = next(task.parameters()).device
    torch.manual_seed(seed_of(progress.seed, "step", progress.step, progress.micro))
    with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        losses: Losses = task(to_device(batch, device), progress)
    total = losses.total
    require_finite("loss", total, progress.step, [batch])
    (total * share).backward()
    return losses


def measure(task: Task, validation: Validation) -> Mapping[str, float]:
    """The validation's measures, with the task in evaluation mode meanwhile."""
    task.eval()
    try:
        with torch.no_grad():
            return validation.measure()
    finally:
        task.train()
