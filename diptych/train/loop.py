"""The training loop. It knows no model: a task gives losses, this moves the weights.

A run killed at any moment and resumed ends with the same bits: each random draw is a pure function of (seed, step,
sample), the order of the data one of the step, and whatever else has memory is in the checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diptych.data.loader import Loaded, SkipLedger
from diptych.nn.counter_rng import sample_keys
from diptych.nn.gather import Processes
from diptych.schema import Recipe, RunConfig
from diptych.seeds import seed_of
from diptych.task import Task
from diptych.train.distributed import Shared, World, added_up, agree, shared_total
from diptych.train.guard import StopSignals, exit_status, refuse, reproducible, sole_user
from diptych.train.log import RunLog, SilentLog, StepReport, require_tensorboard
from diptych.train.optim import build_optimizer, learning_rate
from diptych.train.state import Plan, RunState, RunStore
from diptych.train.watch import Watch, watched
from diptych.types import AnyBatch, Losses, PictureBatch, Progress, TextBatch, to_device


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
    world: World | None = None,
) -> Path:
    """Trains `task`, which is on its device already, and returns the last checkpoint.

    Raises ValueError for a folder that holds another run, a loss or gradient that is not finite (before it reaches the
    weights), too many unreadable records, a full disk. Ctrl-C and SIGTERM save, say how to go on and raise SystemExit.
    """
    world = world or World()
    plan = Plan.of(recipe, loader.steps_per_epoch)
    if recipe.run.tensorboard:
        require_tensorboard()
    shared = Shared.of(task, recipe, world)
    parameters = shared.parameters()
    optimizer = build_optimizer(task, recipe.optim, parameters)
    store = RunStore(folder, recipe, shared, parameters, optimizer, loader.ledger, save_tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_user(folder) if world.first else nullcontext(), watched(world, recipe.run.timeout) as watch:
        state = store.open(resume)
        batches = loader.batches(state.step)
        task.train()
        log = RunLog(folder, plan, state, recipe.run) if world.first else SilentLog()
        with reproducible(recipe.run.threads), log, StopSignals() as stop, store:
            stepper = Stepper(shared, parameters, optimizer, plan, recipe, watch, stop)
            while not plan.ended(state):
                report = stepper.step(batches, state)
                state = state.after_step(report.pairs, report.seconds)
                log.step(report, state)
                if validation and plan.validates(state.step):
                    began = time.monotonic()
                    measures = measure(shared, validation)
                    state = state.after_validation(measures[validation.maximise], time.monotonic() - began)
                    log.validation(measures, validation.maximise, state)
                if plan.saves(state) or report.stopped:
                    store.save(state, plan.epoch(state.step))
                if report.stopped and not plan.ended(state):
                    log.say(f"{report.stopped.name}: step {state.step} is saved. Go on with: diptych resume {folder}")
                    raise SystemExit(exit_status(report.stopped))
            log.say(f"{state.step} steps, {store.skipped().summary()}")
    return store.newest()


@dataclass(frozen=True)
class Stepper:
    """One optimiser step: the loss of the batch of all processes, and what moves the weights."""

    shared: Shared
    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    plan: Plan
    recipe: Recipe
    watch: Watch
    stop: StopSignals

    def step(self, loaded: Iterator[Loaded], state: RunState) -> StepReport:
        task, optim, run, plan = self.shared.task, self.recipe.optim, self.recipe.run, self.plan
        began = time.monotonic()
        rate = learning_rate(state.step, optim.lr, self.recipe.schedule, plan.steps, plan.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        progress = Progress(state.step, plan.epoch(state.step), run.seed)
        asked = time.monotonic()
        batch = next(loaded).batch
        waiting = time.monotonic() - asked
        self.watch.arrived(state.step + 1)
        task.before_step()
        losses = forward_backward(self.shared, batch, progress, run)
        self.shared.hand_gradients(self.parameters)
        norm = self.shared.gradient_norm(self.parameters, optim.clip)
        told = agree(self.shared.world, losses.total, norm, len(batch), self.stop.caught)
        if not told.finite:
            refuse(self.shared.world, losses.total, norm, state.step, batch)
        self.optimizer.step()
        self.shared.clear_gradients(self.parameters)
        task.after_step(losses.carry)
        found = added_up(losses, self.shared.world)
        self.watch.left()
        return StepReport(rate, norm, found, told.pairs, time.monotonic() - began, waiting, told.stopped)


def forward_backward(shared: Shared, batch: AnyBatch, progress: Progress, run: RunConfig) -> Losses:
    """Adds the gradient of a batch.

    Dropout depends on (seed, step, sample) and nothing before; what else a task draws, on (seed, step).
    """
    device = next(shared.task.parameters()).device
    torch.manual_seed(seed_of(progress.seed, "step", progress.step, shared.world.rank))
    given = keyed(to_device(batch, device), progress)
    with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        losses = shared.forward(given, progress)
    shared_total(losses, shared.world).backward()
    return losses


def keyed(batch: AnyBatch, progress: Progress) -> AnyBatch:
    """The batch with a key for each sample, from which its dropout is counted (nn/counter_rng.py)."""
    first = Processes.meet(len(batch)).own.start
    device = batch.texts.input_ids.device if isinstance(batch, TextBatch) else batch.pixels.device
    keys = sample_keys(seed_of(progress.seed, "drop", progress.step), first, len(batch), device)
    if isinstance(batch, PictureBatch):
        return replace(batch, rng_keys=keys)
    batch = replace(batch, texts=replace(batch.texts, rng_keys=keys))
    return batch if isinstance(batch, TextBatch) else replace(batch, rng_keys=keys)


def measure(shared: Shared, validation: Validation) -> Mapping[str, float]:
    """The validation's measures, with the task in evaluation mode meanwhile.

    Every process measures; the first one's count.
    """
    shared.task.eval()
    try:
        with torch.no_grad(), shared.whole():
            return shared.world.tell(validation.measure())
    finally:
        shared.task.train()
