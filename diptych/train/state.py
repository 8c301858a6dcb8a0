"""Where a run stands, how long it goes, and its folder.

RUN/recipe.json      the resolved recipe: its presence marks a run's folder
    metrics.jsonl    train/log.py
    checkpoints/     checkpoints/store.py
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import diptych
from diptych.checkpoints import store
from diptych.data.loader import SkipLedger
from diptych.data.record import BadRecord
from diptych.schema import Recipe
from diptych.serialize import from_dict, to_dict
from diptych.task import Task
from diptych.train.optim import load_optimizer_state, optimizer_state


@dataclass(frozen=True)
class RunState:
    """What changes while a run goes on, beside tensors."""

    step: int = 0
    """Optimiser steps done."""
    pairs: int = 0
    seconds: float = 0.0
    """Time in steps and validations, earlier processes included."""
    measure: float | None = None
    """What this very step's validation gave."""
    best: float | None = None
    stale: int = 0
    """Validations since the best one."""

    def after_step(self, pairs: int, seconds: float) -> RunState:
        return replace(self, step=self.step + 1, pairs=self.pairs + pairs, seconds=self.seconds + seconds, measure=None)

    def after_validation(self, measure: float, seconds: float) -> RunState:
        better = self.best is None or measure > self.best
        judged = replace(self, measure=measure, seconds=self.seconds + seconds)
        return replace(judged, best=measure, stale=0) if better else replace(judged, stale=self.stale + 1)

    @property
    def improved(self) -> bool:
        """This step was validated and is the best so far."""
        return self.measure is not None and self.stale == 0


@dataclass(frozen=True)
class Plan:
    """How long a run goes. An epoch of the schedule is a whole number of optimiser steps."""

    steps: int
    steps_per_epoch: int
    accumulate: int
    validate_every: int
    checkpoint_every: int
    patience: int | None

    @classmethod
    def of(cls, recipe: Recipe, batches_per_epoch: int) -> Plan:
        run, accumulate = recipe.run, recipe.optim.accumulate
        least = {
            "optim.accumulate": accumulate,
            "run.log_every": run.log_every,
            "run.checkpoint_every": run.checkpoint_every,
            "run.keep_checkpoints": run.keep_checkpoints,
            "run.epochs" if run.steps is None else "run.steps": run.epochs if run.steps is None else run.steps,
        }
        if wrong := [name for name, value in least.items() if value < 1]:
            raise ValueError(f"{' and '.join(wrong)} must be at least 1")
        if batches_per_epoch < accumulate:
            raise ValueError(
                f"an epoch has {batches_per_epoch} batches, fewer than optim.accumulate={accumulate}:"
                " lower that or run.batch_size"
            )
        steps_per_epoch = batches_per_epoch // accumulate
        steps = run.epochs * steps_per_epoch if run.steps is None else run.steps
        return cls(steps, steps_per_epoch, accumulate, run.validate_every, run.checkpoint_every, run.patience)

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def ended(self, state: RunState) -> bool:
        return state.step >= self.steps or (self.patience is not None and state.stale >= self.patience)

    def validates(self, step: int) -> bool:
        """Regularly, and at the end."""
        return self.validate_every > 0 and (step % self.validate_every == 0 or step == self.steps)

    def saves(self, state: RunState) -> bool:
        """Regularly, at the end, and whenever a validation was the best so far."""
        return state.step % self.checkpoint_every == 0 or state.improved or self.ended(state)


@dataclass(frozen=True)
class RunStore:
    """A run's folder, with all that has to be put back when it is resumed."""

    folder: Path
    recipe: Recipe
    task: Task
    optimizer: torch.optim.Optimizer
    ledger: SkipLedger
    save_tokenizer: Callable[[Path], object] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def open(self, resume: bool) -> RunState:
        """Marks the folder as this run's, or puts back the state of its last checkpoint (none yet: the beginning).

        Of damaged checkpoints the last whole one is taken; raises CheckpointError where none is.
        """
        check_folder(self.folder, resume)
        recipe = to_dict(self.recipe)
        if not resume:
            _write(self.folder / "recipe.json", recipe)
            return RunState()
        if differing := _differences(to_dict(stored_recipe(self.folder)), recipe):
            raise ValueError(
                f"{self.folder} was begun with another recipe; resuming cannot change {', '.join(differing)}"
            )
        newest, damaged = store.newest_whole(self.checkpoints)
        if newest is None:
            return RunState()
        state = self._restore(newest)
        store.set_aside(damaged, newest.folder)
        self._prune()  # a run killed while it removed old checkpoints may have nothing more to save
        return state

    def _restore(self, checkpoint: store.Checkpoint) -> RunState:
        store.load_into(self.task, checkpoint.weights(), checkpoint.folder)
        load_optimizer_state(self.task, self.optimizer, checkpoint.optimizer())
        skipped = checkpoint.state["skipped"]
        self.ledger.note(skipped["seen"], [BadRecord(*error) for error in skipped["bad"]])
        return RunState(**checkpoint.state["run"])

    def newest(self) -> Path:
        """The last checkpoint of a run that has one."""
        newest = store.latest(self.checkpoints)
        assert newest is not None
        return newest

    def save(self, state: RunState, epoch: float) -> Path:
        bad = [(error.record, error.reason, error.detail) for error in self.ledger.bad.values()]
        content = {
            "step": state.step,
            "epoch": epoch,
            "measure": state.measure,
            "run": asdict(state),
            "skipped": {"seen": self.ledger.seen, "bad": bad},
            "versions": versions(),
        }
        written = store.save_checkpoint(
            self.checkpoints,
            state.step,
            store.CheckpointState(
                weights=self.task.state_dict(),
                optimizer=optimizer_state(self.task, self.optimizer),
                state=content,
                recipe=to_dict(self.recipe),
                save_tokenizer=self.save_tokenizer,
            ),
        )
        self._prune()
        return written

    def _prune(self) -> None:
        store.prune(self.checkpoints, self.recipe.run.keep_checkpoints)


def stored_recipe(folder: Path) -> Recipe:
    """What a run's folder says that the run is."""
    return from_dict(json.loads((folder / "recipe.json").read_text()))


def check_folder(folder: Path, resume: bool) -> None:
    """Raises ValueError if `folder` holds a run and none is to be resumed, or the other way round."""
    holds_run = (folder / "recipe.json").exists()
    if resume and not holds_run:
        raise ValueError(f"{folder} holds no run to resume: it has no recipe.json")
    if holds_run and not resume:
        raise ValueError(f"{folder} already holds a run: go on with `diptych resume {folder}`, or name another folder")


def versions() -> dict[str, str]:
    """Of what decides a run's bits."""
    return {"diptych": diptych.__version__, "torch": torch.__version__, "python": platform.python_version()}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.replace(path)


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Dotted names of the fields in which two plain recipes differ."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return [] if one == other else [name]
    keys = sorted({*one, *other})
    return [found for key in keys for found in _differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))]
