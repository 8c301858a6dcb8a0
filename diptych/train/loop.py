"""The training loop. It knows no model: a task computes losses, and the loop moves the weights.

A run that is killed at any moment and resumed ends with the same bits. Each random draw is a pure function of (seed,
step, sample), the order of the data is a pure function of the step, and everything else that a run remembers is in its
checkpoints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor

from diptych.data.loader import Loaded
from diptych.data.skips import SkipLedger
from diptych.nn.counter_rng import sample_keys
from diptych.nn.gather import Processes
from diptych.schema import Recipe, RunConfig
from diptych.seeds import seed_of
from diptych.task import Task
from diptych.train.distributed import World, agree, global_losses, loss_share
from diptych.train.guard import StoppedWaiting, StopSignals, refuse, reproducible, sole_user
from diptych.train.log import RunLog, SilentLog, StepReport
from diptych.train.memory import TRIM_EVERY, trim
from diptych.train.optim import build_optimizer, learning_rate
from diptych.train.parallel import ParallelTask
from diptych.train.state import Plan, RunState, RunStore
from diptych.train.trackers import require_trackers
from diptych.train.watch import STOP_GRACE, Watch, watched
from diptych.types import AnyBatch, Losses, PictureBatch, Progress, TextBatch, to_device


@runtime_checkable
class Loader(Protocol):
    """Names what the loop needs of a loader (`data.loader.PairLoader`)."""

    ledger: SkipLedger

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, start_step: int) -> Iterator[Loaded]: ...


@dataclass(frozen=True)
class Validation:
    """A measurement every `run.validate_every` steps. The checkpoint with the highest `maximise` is kept."""

    measure: Callable[[], Mapping[str, float]]
    maximise: str
    """The name of one of the measures."""


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
    weights), too many unreadable records, and a full disk; OSError (PoolError) for data that does not come within
    `run.timeout`. After Ctrl-C or SIGTERM it saves a checkpoint, prints how to resume and raises SystemExit.
    """
    world = world or World()
    plan = Plan.of(recipe, loader.steps_per_epoch)
    require_trackers(recipe.run)
    parallel = ParallelTask.of(task, recipe, world)
    parameters = parallel.parameters()
    optimizer = build_optimizer(task, recipe.optim, parameters, recipe.released, recipe.run.precision)
    store = RunStore(folder, recipe, parallel, parameters, optimizer, loader.ledger, save_tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    stop = StopSignals()
    with sole_user(folder) if world.first else nullcontext(), watched(world, recipe.run.timeout, stop) as watch:
        state = store.open(resume)
        batches = loader.batches(state.step)
        task.train()
        log = RunLog(folder, plan, state, recipe) if world.first else SilentLog()
        with reproducible(recipe.run.threads), log, stop, store:
            stepper = Stepper(parallel, parameters, optimizer, plan, recipe, watch, stop)
            while not plan.ended(state):
                try:
                    report = stepper.step(batches, state)
                except StoppedWaiting:
                    stop_waiting(store, state, plan, stop)
                state = state.after_step(report.pairs, report.seconds)
                log.step(report, state)
                if state.step % TRIM_EVERY == 0:
                    trim()
                if validation and plan.validates(state.step):
                    began = time.monotonic()
                    measures = measured(validation, store, state, plan.epoch(state.step), log)
                    state = state.after_validation(measures[validation.maximise], time.monotonic() - began)
                    log.validation(measures, validation.maximise, state)
                if plan.saves(state) or report.stopped:
                    with watch.saving(state.step):
                        store.save(state, plan.epoch(state.step))
                if report.stopped and not plan.ended(state):
                    with watch.saving(state.step):
                        store.settle()
                    log.say(f"{report.stopped.name}: step {state.step} is saved. Go on with: diptych resume {folder}")
                    raise SystemExit(128 + report.stopped)  # as shells do: 130 after Ctrl-C, 143 after SIGTERM
            log.say(f"{state.step} steps, {store.skipped().summary()}")
    return store.newest()


def stop_waiting(store: RunStore, state: RunState, plan: Plan, stop: StopSignals) -> NoReturn:
    """Ends a run whose next batch a signal has made it give up, and prints how to go on. Raises SystemExit.

    A process alone saves the steps that it has done. Several cannot: the others may have begun the step already, and
    wait in it for this one.
    """
    assert stop.caught is not None
    saved = f"goes on from its last checkpoint (this is process {store.world.rank})"
    if store.world.size == 1:
        if state.step and not store.holds(state.step):
            store.save(state, plan.epoch(state.step))
        store.settle()
        saved = f"step {state.step} is saved" if state.step else "no step was done yet"
    print(
        f"{stop.caught.name} while waiting for the data of step {state.step + 1}: {saved}."
        f" Go on with: diptych resume {store.folder}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    raise SystemExit(128 + stop.caught)


@dataclass(frozen=True)
class Stepper:
    """Takes one optimiser step at a time, from the batch of this process to the new weights of all processes."""

    parallel: ParallelTask
    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    plan: Plan
    recipe: Recipe
    watch: Watch
    stop: StopSignals

    def step(self, loaded: Iterator[Loaded], state: RunState) -> StepReport:
        """Takes the next batch and one optimiser step. Raises ValueError before a loss that is not finite is used."""
        parallel, task, plan, optim = self.parallel, self.parallel.task, self.plan, self.recipe.optim
        began = time.monotonic()
        rate = learning_rate(
            state.step, optim.lr, self.recipe.schedule, plan.steps, plan.steps_per_epoch, self.recipe.released
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        progress = Progress(state.step, plan.epoch(state.step), self.recipe.run.seed)

        waiting_since = time.monotonic()
        self.watch.awaits_data(state.step + 1)
        # Among several processes a signal first gives the batch time to arrive, so that all can finish the step.
        with self.stop.breaking_off(STOP_GRACE if parallel.world.size > 1 else 0.0):
            batch = next(loaded).batch
        waiting = time.monotonic() - waiting_since
        self.watch.arrived(state.step + 1)

        task.before_step()
        losses = forward_backward(parallel, batch, progress, self.recipe.run)
        parallel.hand_gradients(self.parameters)
        norm = parallel.gradient_norm(self.parameters, optim.clip)
        # All processes take the step, or none does: one loss that is not finite stops them all before the weights move.
        consensus = agree(parallel.world, losses.total, norm, len(batch), self.stop.caught)
        if not consensus.finite:
            refuse(parallel.world, losses.total, norm, state.step, batch, rate)
        self.optimizer.step()
        parallel.clear_gradients(self.parameters)
        task.after_step(losses.carry)

        reported = global_losses(losses, parallel.world)
        self.watch.left()
        return StepReport(rate, norm, reported, consensus.pairs, time.monotonic() - began, waiting, consensus.stopped)


def forward_backward(parallel: ParallelTask, batch: AnyBatch, progress: Progress, run: RunConfig) -> Losses:
    """Computes the losses of a batch and adds their gradient.

    Dropout depends on (seed, step, sample) and on nothing drawn before. Other draws of a task depend on (seed, step).
    """
    device = next(parallel.task.parameters()).device
    torch.manual_seed(seed_of(progress.seed, "step", progress.step, parallel.world.rank))
    batch = keyed(to_device(batch, device), progress)
    with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        losses = parallel.forward(batch, progress)
    loss_share(losses, parallel.world).backward()
    return losses


def keyed(batch: AnyBatch, progress: Progress) -> AnyBatch:
    """Gives each sample of the batch an RNG key, from which its dropout is computed (nn/counter_rng.py)."""
    first = Processes.meet(len(batch)).own.start
    device = batch.texts.input_ids.device if isinstance(batch, TextBatch) else batch.pixels.device
    keys = sample_keys(seed_of(progress.seed, "drop", progress.step), first, len(batch), device)
    if isinstance(batch, PictureBatch):
        return replace(batch, rng_keys=keys)
    batch = replace(batch, texts=replace(batch.texts, rng_keys=keys))
    return batch if isinstance(batch, TextBatch) else replace(batch, rng_keys=keys)


def measured(
    validation: Validation, store: RunStore, state: RunState, epoch: float, log: RunLog | SilentLog
) -> Mapping[str, float]:
    """Measures, and where that fails saves a checkpoint before the error ends the run: no step of training is lost."""
    try:
        return measure(store.parallel, validation)
    except Exception:
        store.save(state, epoch)
        store.settle()
        log.say(f"the validation of step {state.step} failed; the training up to this step is saved")
        raise


def measure(parallel: ParallelTask, validation: Validation) -> Mapping[str, float]:
    """Measures with the task in evaluation mode. Every process measures, and all return what the first one did.

    Where the measurement fails in one process, all raise.
    """
    world = parallel.world
    parallel.task.eval()
    try:
        with torch.no_grad(), parallel.unsharded():
            measures: Mapping[str, float] = {}
            failure: Exception | None = None
            try:
                measures = validation.measure()
            except Exception as error:
                failure = error
            messages = [message for message in world.gather(failure and str(failure)) if message is not None]
            if messages:
                raise failure or ValueError(messages[0])
            return world.broadcast(measures)
    finally:
        parallel.task.train()
