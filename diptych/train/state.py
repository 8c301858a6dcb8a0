"""Where a run stands, how long it goes, and its folder.

RUN/recipe.json      the resolved recipe: its presence marks a run's folder
    metrics.jsonl    train/log.py
    checkpoints/     checkpoints/store.py
"""

from __future__ import annotations

import json
import platform
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
from diptych.schema import Recipe
from diptych.serialize import from_dict, to_dict
from diptych.train.distributed import Shared, World
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
    validate_every: int
    checkpoint_every: int
    patience: int | None

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int) -> Plan:
        run = recipe.run
        least = {
            "optim.accumulate": recipe.optim.accumulate,
            "run.log_every": run.log_every,
            "run.checkpoint_every": run.checkpoint_every,
            "run.keep_checkpoints": run.keep_checkpoints,
            "run.epochs" if run.steps is None else "run.steps": run.epochs if run.steps is None else run.steps,
        }
        if wrong := [name for name, value in least.items() if value < 1]:
            raise ValueError(f"{' and '.join(wrong)} must be at least 1")
        steps = run.epochs * steps_per_epoch if run.steps is None else run.steps
        return cls(steps, steps_per_epoch, run.validate_every, run.checkpoint_every, run.patience)

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


@dataclass
class RunStore:
    """A run's folder, with all that has to be put back when it is resumed. All processes of the run have one."""

    folder: Path
    recipe: Recipe
    shared: Shared
    parameters: Mapping[str, Tensor]
    """What the optimiser moves, by name."""
    optimizer: torch.optim.Optimizer
    ledger: SkipLedger
    save_tokenizer: Callable[[Path], object] | None = None
    _writing: Future[None] | None = None
    """The checkpoint that is being written beside the training."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def world(self) -> World:
        return self.shared.world

    def open(self, resume: bool) -> RunState:
        """Marks the folder as this run's, or puts back the state of its last checkpoint (none yet: the beginning).

        Of damaged checkpoints the last whole one is taken; raises CheckpointError where none is.
        """
        newest = self.world.first_does(lambda: self._begin(resume))
        if newest is None:
            return RunState()
        state = self._restore(newest)
        if self.world.first:
            self._prune()  # a run killed while it removed old checkpoints may have nothing more to save
        return state

    def _begin(self, resume: bool) -> store.Checkpoint | None:
        """The checkpoint to go on from."""
        check_folder(self.folder, resume)
        recipe = to_dict(self.recipe)
        if not resume:
            _write(self.folder / "recipe.json", recipe)
            return None
        if differing := _differences(to_dict(stored_recipe(self.folder)), recipe):
            raise ValueError(
                f"{self.folder} was begun with another recipe; resuming cannot change {', '.join(differing)}"
            )
        newest, damaged = store.newest_whole(self.checkpoints)
        if newest is not None:
            store.set_aside(damaged, newest.folder)
        return newest

    def _restore(self, checkpoint: store.Checkpoint) -> RunState:
        """Each process reads its own part, whatever number of processes has written."""
        weights, memory = checkpoint.stored("weights"), checkpoint.stored("optimizer")
        store.check_fit(self.shared.task, {name: weights.shape(name) for name in weights.names}, checkpoint.folder)
        with torch.no_grad():
            for name, value in self.shared.task.state_dict().items():
                own_part(value).copy_(self.shared.read(weights, name, value))
        load_optimizer_state(
            self.parameters, self.optimizer,
            {name: self.shared.read(memory, name) for name in memory.names},
        )  # fmt: skip
        skipped = checkpoint.state["skipped"]
        if self.world.first:  # what was skipped counts once, not for every process
            self.ledger.note(skipped["seen"], [BadRecord(*error) for error in skipped["bad"]])
        return RunState(**checkpoint.state["run"])

    def newest(self) -> Path:
        """The last checkpoint of a run that has one."""
        newest = self.world.tell(store.latest(self.checkpoints))
        assert newest is not None
        return newest

    def skipped(self) -> SkipLedger:
        """What all processes have skipped. All must call this."""
        found = self.world.exchange((self.ledger.seen, list(self.ledger.bad.values())))
        everyone = SkipLedger(self.ledger.limit_share, self.ledger.total)
        for seen, bad in found:
            everyone.note(seen, bad)
        return everyone

    def save(self, state: RunState, epoch: float) -> None:
        """Writes a checkpoint; with `run.checkpoint_async` beside the training, from a copy in memory."""
        self.settle()
        skipped = self.skipped()
        bad = [(error.record, error.reason, error.detail) for error in skipped.bad.values()]
        content = {
            "step": state.step,
            "epoch": epoch,
            "measure": state.measure,
            "run": asdict(state),
            "skipped": {"seen": skipped.seen, "bad": bad},
            "versions": versions(),
        }
        weights = self.shared.own_parts(self.shared.task.state_dict())
        memory = self.shared.own_parts(optimizer_state(self.parameters, self.optimizer))
        aside = self.recipe.run.checkpoint_async
        if aside:
            weights, memory = copied(weights), copied(memory)
        ready = store.CheckpointState(
            weights, memory, content, to_dict(self.recipe), self.save_tokenizer, cut=self.shared.cut
        )
        if aside:
            self._writing = _aside(lambda: self._write_down(state.step, ready))
        else:
            self._write_down(state.step, ready)

    def _write_down(self, step: int, content: store.CheckpointState) -> None:
        store.save_checkpoint(self.checkpoints, step, content, Filing(self.world))
        if self.world.first:
            self._prune()

    def settle(self) -> None:
        """Waits for what is being written. Raises CheckpointError where that failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """What was begun is finished; its own fault is told unless there is one already."""
        if error is None or isinstance(error, SystemExit):
            self.settle()
        elif self._writing is not None:
            wait([self._writing])

    def _prune(self) -> None:
        store.prune(self.checkpoints, self.recipe.run.keep_checkpoints)


@dataclass(frozen=True)
class Filing:
    """The processes of a run as the writers of its checkpoints, who meet apart from its training."""

    world: World

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def size(self) -> int:
        return self.world.size

    def exchange(self, value: Any) -> list[Any]:
        return self.world.exchange(value, self.world.files)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, where nothing changes them."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def _aside(work: Callable[[], None]) -> Future[None]:
    """Done by a thread of its own."""
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(work)
        threads.shutdown(wait=False)
    return future


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
