"""The state of a run, its length, and its folder.

RUN/recipe.json      the resolved recipe; its presence marks the folder of a run
    start.json       train/start.py
    data.json        run/known_data.py
    metrics.jsonl    train/log.py
    checkpoints/     checkpoints/store.py
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diptych
from diptych.checkpoints import store
from diptych.data.record import BadRecord
from diptych.data.skips import SkipLedger
from diptych.nn.shards import own_part
from diptych.reading import parse_json, read_stored
from diptych.schema import RESUMABLE, Recipe
from diptych.serialize import from_dict, to_dict
from diptych.train.distributed import World
from diptych.train.optim import load_optimizer_state, optimizer_state
from diptych.train.parallel import ParallelTask
from diptych.writing import write_text

_LAST_BYTES = 1 << 16
"""The end of a log that is read to find its last step."""


@dataclass(frozen=True)
class RunState:
    """Everything beside tensors that changes while a run goes on. Checkpoints hold it."""

    step: int = 0
    """Optimiser steps done."""
    pairs: int = 0
    """Samples seen, with repetition."""
    seconds: float = 0.0
    """Time in steps and validations, before and after resuming."""
    measure: float | None = None
    """The result of this step's validation; None where the step had none."""
    best: float | None = None
    """The highest result of all validations."""
    stale: int = 0
    """Validations since the best one."""

    def after_step(self, pairs: int, seconds: float) -> RunState:
        """Returns the state after one more step."""
        return replace(self, step=self.step + 1, pairs=self.pairs + pairs, seconds=self.seconds + seconds, measure=None)

    def after_validation(self, measure: float, seconds: float) -> RunState:
        """Returns the state after this step's validation. A result that equals the best one does not replace it."""
        state = replace(self, measure=measure, seconds=self.seconds + seconds)
        if self.best is None or measure > self.best:
            return replace(state, best=measure, stale=0)
        return replace(state, stale=self.stale + 1)

    @property
    def improved(self) -> bool:
        """Whether this step was validated and is the best so far."""
        return self.measure is not None and self.stale == 0


@dataclass(frozen=True)
class Plan:
    """How long a run goes, and when it validates and saves. An epoch is a whole number of optimiser steps."""

    steps: int
    steps_per_epoch: int
    validate_every: int
    checkpoint_every: int
    patience: int | None

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int) -> Plan:
        """Takes the numbers from the recipe's `run`. Raises ValueError naming those that are below 1."""
        run = recipe.run
        counts = {
            "optim.accumulate": recipe.optim.accumulate,
            "run.log_every": run.log_every,
            "run.checkpoint_every": run.checkpoint_every,
            "run.keep_checkpoints": run.keep_checkpoints,
            "run.epochs" if run.steps is None else "run.steps": run.epochs if run.steps is None else run.steps,
        }
        if too_small := [name for name, count in counts.items() if count < 1]:
            raise ValueError(f"{' and '.join(too_small)} must be at least 1")
        steps = run.epochs * steps_per_epoch if run.steps is None else run.steps
        return cls(steps, steps_per_epoch, run.validate_every, run.checkpoint_every, run.patience)

    def epoch(self, step: int) -> float:
        """Returns the epochs done after `step` steps, with their fraction."""
        return step / self.steps_per_epoch

    def ended(self, state: RunState) -> bool:
        """Whether all steps are done, or too many validations in a row have brought nothing better."""
        return state.step >= self.steps or (self.patience is not None and state.stale >= self.patience)

    def validates(self, step: int) -> bool:
        """Whether to validate after a step: every `validate_every` steps, and after the last one."""
        return self.validate_every > 0 and (step % self.validate_every == 0 or step == self.steps)

    def saves(self, state: RunState) -> bool:
        """Whether to save: every `checkpoint_every` steps, at the end, and after the best validation so far."""
        return state.step % self.checkpoint_every == 0 or state.improved or self.ended(state)


@dataclass
class RunStore:
    """A run's folder, and everything that a checkpoint saves and resuming restores. Every process of the run has one.

    As a context it waits, at its end, for a checkpoint that is still being written.
    """

    folder: Path
    recipe: Recipe
    parallel: ParallelTask
    parameters: Mapping[str, Tensor]
    """The tensors that the optimiser moves, by name."""
    optimizer: torch.optim.Optimizer
    ledger: SkipLedger
    save_tokenizer: Callable[[Path], object] | None = None
    _writing: Future[None] | None = None
    """The checkpoint that is being written while training goes on."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def world(self) -> World:
        return self.parallel.world

    def open(self, resume: bool) -> RunState:
        """Marks a new run's folder, or restores the last checkpoint of a run, and returns where the run stands.

        A run without a checkpoint starts from the beginning. Damaged checkpoints are set aside for the last whole one.
        Raises CheckpointError where all are damaged.
        """
        checkpoint = self.world.on_first(lambda: self._claim_folder(resume))
        if checkpoint is None:
            return RunState()
        state = self._restore(checkpoint)
        if self.world.first:
            self._prune()  # a killed run may have left checkpoints to remove, and may have none to save any more
        return state

    def _claim_folder(self, resume: bool) -> store.Checkpoint | None:
        """Writes or compares `recipe.json`. Returns the checkpoint to resume from, if there is one."""
        check_folder(self.folder, resume)
        recipe = to_dict(self.recipe)
        if not resume:
            write_text(self.folder / "recipe.json", json.dumps(recipe, indent=1))
            return None
        stored = stored_recipe(self.folder)
        differing = _differences(to_dict(stored), recipe)
        if settled := [name for name in differing if name not in RESUMABLE]:
            raise ValueError(
                f"{self.folder} was begun with another recipe; resuming cannot change {', '.join(settled)}"
            )
        if _mixed(stored) != _mixed(self.recipe):
            raise ValueError(
                f"{self.folder} was begun with another mix: resuming changes only path and root of its parts"
            )
        if differing:
            write_text(self.folder / "recipe.json", json.dumps(recipe, indent=1))
        newest, damaged = store.newest_whole(self.checkpoints)
        if newest is None:
            self._check_beginning(logged_steps(self.folder))
        else:
            store.set_aside(damaged, newest.folder)
        return newest

    def _check_beginning(self, logged: int) -> None:
        """Says that a run without a checkpoint starts again. Raises ValueError if it must have had one."""
        if logged >= 2 * self.recipe.run.checkpoint_every:  # one may have been in the writing when the run was killed
            raise ValueError(
                f"the log of {self.folder} reaches step {logged}, but {self.checkpoints} holds no checkpoint any more: "
                "put its checkpoints back, or train in another folder"
            )
        print(f"{self.folder} has no checkpoint yet: the run starts again at step 0", file=sys.stderr)

    def _restore(self, checkpoint: store.Checkpoint) -> RunState:
        """Loads task, optimiser and skipped records. Each process reads its part, however many processes wrote it."""
        task, read = self.parallel.task, self.parallel.read
        weights, moments = checkpoint.stored("weights"), checkpoint.stored("optimizer")
        store.check_fit(task, {name: weights.shape(name) for name in weights.names}, checkpoint.folder)
        with torch.no_grad():
            for name, value in task.state_dict().items():
                own_part(value).copy_(read(weights, name, value))
        load_optimizer_state(self.parameters, self.optimizer, {name: read(moments, name) for name in moments.names})
        try:
            skipped = checkpoint.state["skipped"]
            bad, state = [BadRecord(*error) for error in skipped["bad"]], RunState(**checkpoint.state["run"])
        except (KeyError, TypeError) as error:
            raise store.CheckpointError(f"{checkpoint.folder} was not written by a training ({error})") from error
        if self.world.first:  # the ledgers of all processes are added up, so that only one may take over the old counts
            self.ledger.note(skipped["seen"], bad)
        return state

    def newest(self) -> Path:
        """Returns the last checkpoint of a run that has one."""
        newest = self.world.broadcast(store.latest(self.checkpoints))
        assert newest is not None
        return newest

    def holds(self, step: int) -> bool:
        """Whether the newest checkpoint is that of a step."""
        self.settle()
        newest = store.latest(self.checkpoints)
        return newest is not None and newest.name == f"{store.PREFIX}{step:08d}"

    def skipped(self) -> SkipLedger:
        """Adds up the records that all processes have skipped. All must call this."""
        total = SkipLedger(self.ledger.limit_share, self.ledger.total)
        for seen, bad in self.world.gather((self.ledger.seen, list(self.ledger.bad.values()))):
            total.note(seen, bad)
        return total

    def save(self, state: RunState, epoch: float) -> None:
        """Writes a checkpoint. With `run.checkpoint_async` a thread writes it, from a copy, while training goes on."""
        self.settle()
        skipped = self.skipped()
        bad = [(error.record, error.reason, error.detail) for error in skipped.bad.values()]
        content = {
            "step": state.step,
            "epoch": epoch,
            "measure": state.measure,
            "run": asdict(state),
            "skipped": {"seen": skipped.seen, "bad": bad},
            "versions": {
                "diptych": diptych.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        weights = self.parallel.local_part(self.parallel.task.state_dict())
        moments = self.parallel.local_part(optimizer_state(self.parameters, self.optimizer))
        in_background = self.recipe.run.checkpoint_async
        if in_background:
            weights, moments = _copied(weights), _copied(moments)
        checkpoint = store.CheckpointState(
            weights, moments, content, to_dict(self.recipe), self.save_tokenizer, sharded=self.parallel.sharded
        )
        if in_background:
            threads = ThreadPoolExecutor(1)  # not as a context, which would wait for the thread
            self._writing = threads.submit(self._write, state.step, checkpoint)
            threads.shutdown(wait=False)
        else:
            self._write(state.step, checkpoint)

    def _write(self, step: int, checkpoint: store.CheckpointState) -> None:
        store.save_checkpoint(self.checkpoints, step, checkpoint, self.world.background or self.world)
        if self.world.first:
            self._prune()

    def settle(self) -> None:
        """Waits for the checkpoint that is being written. Raises CheckpointError where that failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Lets the checkpoint be finished. Its own error is raised unless the run ends with another one."""
        if error is None or isinstance(error, SystemExit):
            self.settle()
        elif self._writing is not None:
            wait([self._writing])

    def _prune(self) -> None:
        store.prune(self.checkpoints, self.recipe.run.keep_checkpoints)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors to the CPU, where the training does not change them."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def stored_recipe(folder: Path) -> Recipe:
    """Reads the recipe of a run from its folder."""
    return from_dict(read_stored(folder / "recipe.json"))


def check_folder(folder: Path, resume: bool) -> None:
    """Raises ValueError if `folder` holds a run that is not to be resumed, or holds none that could be."""
    holds_run = (folder / "recipe.json").exists()
    if resume and (folder / store.MANIFEST).exists():
        of_run = folder.parent.name == "checkpoints"
        raise ValueError(
            f"{folder} is a checkpoint of a run: resume the run, {folder.parent.parent}"
            if of_run
            else f"{folder} is an exported model, not a run: start a new run from its weights with init_from={folder}"
        )
    if resume and not holds_run:
        raise ValueError(f"{folder} holds no run to resume: it has no recipe.json")
    if holds_run and not resume:
        raise ValueError(f"{folder} already holds a run: go on with `diptych resume {folder}`, or name another folder")


def logged_steps(folder: Path) -> int:
    """Returns the step of the last whole line of a run's log; 0 without a log."""
    log = folder / "metrics.jsonl"
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
            return int(parse_json(line)["step"])
    return 0


def _mixed(recipe: Recipe) -> list[tuple[str, float]]:
    """Returns what matters of a mix wherever its parts lie."""
    return [(part.source, part.weight) for part in recipe.data.mix]


def _differences(recipe: Any, other: Any, name: str = "") -> list[str]:
    """Lists the dotted names of the fields in which two plain recipes differ."""
    if not (isinstance(recipe, Mapping) and isinstance(other, Mapping)):
        return [] if recipe == other else [name]
    fields = sorted({*recipe, *other})
    return [
        differing
        for field in fields
        for differing in _differences(recipe.get(field), other.get(field), f"{name}.{field}".lstrip("."))
    ]
