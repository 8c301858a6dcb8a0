"""The runs of an ablation, which are trained side by side, each in its own process.

FOLDER/PART/seed-N             a run's folder, with two more files:
           asked.json          the recipe as the grid has it, which identifies the run
           compute.json        operations and seconds of its training, written last
           tasks/TASK          the run of a task that follows it
FOLDER/PART/seed-N.log         its output

A run that another ablation beside FOLDER has finished already, or another variant, is copied instead of repeated.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from diptych import catalog
from diptych.apps.ablate.grid import Grid, Part
from diptych.apps.compare.compute import record_compute
from diptych.apps.compare.quality import data_fields
from diptych.apps.report.numbers import duration
from diptych.console import end_of, escape_output
from diptych.data.workers import end_with, processors
from diptych.logged import COMPUTE
from diptych.reading import read_stored
from diptych.recipes.override import override
from diptych.run import evaluate, train
from diptych.schema import Recipe
from diptych.serialize import from_dict, to_dict
from diptych.train.state import stored_recipe
from diptych.writing import write_text

SHOWN = 2_000
"""Number of characters that are shown from the end of a failed run's log."""


@dataclass(frozen=True)
class Run:
    """The training of a part for one seed."""

    part: Part
    seed: int
    recipe: Recipe
    folder: Path
    needs: tuple[Path, ...]
    """Folders of the runs that it starts from."""
    measured: bool
    """Whether the run is a variant or a task, which are measured on the test split."""

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def request(self) -> Path:
        """File of the recipe as the grid has it."""
        return self.folder / "asked.json"

    @property
    def done(self) -> bool:
        return (self.folder / COMPUTE).is_file()


def plan(grid: Grid, folder: Path) -> tuple[Run, ...]:
    """Lists the runs of a grid, each after those that it starts from. Raises ValueError for invalid runs."""
    planned: list[Run] = []
    _check_data(grid)
    for seed in grid.seeds:
        for part in _needed(grid):
            run = _run(grid, part, seed, folder)
            equal = tuple(one.folder for one in planned if one.recipe == run.recipe and one.part in grid.variants)
            planned.append(replace(run, needs=(*run.needs, *equal[:1])))
        planned += [_task_run(grid, variant, part, seed, folder) for variant in grid.variants for part in grid.tasks]
    return tuple(planned)


def _check_data(grid: Grid) -> None:
    """Raises ValueError for variants that would be measured on different data."""
    first, *others = grid.variants
    data = {
        part.name: dict(data_fields(override(catalog.find_recipe(part.recipe), part.set))) for part in grid.variants
    }
    for part in others:
        if differing := [name for name, value in data[part.name].items() if data[first.name].get(name) != value]:
            raise ValueError(
                f"{grid.name}: {first.name} and {part.name} would be measured on different data: they differ in "
                f"{', '.join(differing)}"
            )


def place(folder: Path, part: Part, seed: int) -> Path:
    """Names the folder of a stage's or variant's run."""
    return folder / part.slug / f"seed-{seed}"


def task_place(folder: Path, variant: Part, task: Part, seed: int) -> Path:
    """Names the folder of the run of a task that follows a variant."""
    return place(folder, variant, seed) / "tasks" / task.slug


def _needed(grid: Grid) -> tuple[Part, ...]:
    """Lists all stages and variants but the stages that no variant starts from."""
    names = {part.name for variant in grid.variants for part in grid.chain(variant)}
    return tuple(part for part in grid.parts if part.name in names)


def _run(grid: Grid, part: Part, seed: int, folder: Path) -> Run:
    stages = {stage.name: place(folder, stage, seed) for stage in grid.stages}
    links = {field: stages[stage] for field, stage in part.after.items()}
    return _linked(part, seed, place(folder, part, seed), links, measured=part in grid.variants)


def _task_run(grid: Grid, variant: Part, task: Part, seed: int, folder: Path) -> Run:
    earlier = {part.name: part for part in grid.tasks}
    after = {field: task_place(folder, variant, earlier[name], seed) for field, name in task.after.items()}
    links = {"init_from": place(folder, variant, seed)} | after
    task = replace(task, set={**task.set, **variant.tasks.get(task.name, {})})
    return _linked(task, seed, task_place(folder, variant, task, seed), links, measured=True)


def _linked(part: Part, seed: int, folder: Path, links: Mapping[str, Path], measured: bool) -> Run:
    """Builds a run whose recipe names the folders of the runs before it."""
    named = {field: str(run) for field, run in links.items()}
    recipe = override(catalog.find_recipe(part.recipe), {**part.set, **named, "run.seed": seed})
    run = Run(part, seed, recipe, folder, tuple(links.values()), measured)
    if run.request.is_file() and _asked(run.request) != recipe:
        raise ValueError(f"{run.folder} holds a run of another recipe: remove it, or take another --folder")
    return run


def _asked(request: Path) -> Recipe:
    return from_dict(read_stored(request))


# --------------------------------------------------------------------------- side by side


def train_all(
    runs: tuple[Run, ...], jobs: int, ended: Callable[[Mapping[Path, str]], None] = lambda failed: None
) -> dict[Path, str]:
    """Trains all unfinished runs, `jobs` at once. Returns the reasons of failed runs by their folders.

    Runs that start from a failed one are left out, and the others go on. When this process is stopped, all runs save
    their states, also by SIGTERM. `ended` is called with the failed ones after each run.
    """
    failed: dict[Path, str] = {}
    waiting = [run for run in runs if not run.done]
    asked, begun = len(waiting), time.monotonic()
    running: dict[int, tuple[Run, BaseProcess]] = {}
    earlier = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            waiting = _without_lost(waiting, failed)
            finished = {run.folder for run in runs if run.done}
            ready = [run for run in waiting if finished.issuperset(run.needs)]
            for run in ready[: jobs - len(running)]:
                process = _started(run, jobs)
                running[process.sentinel] = run, process
                waiting.remove(run)
            for sentinel in wait(list(running)) if running else ():
                assert isinstance(sentinel, int)
                run, process = running.pop(sentinel)
                process.join()
                if process.exitcode or not run.done:
                    failed[run.folder] = f"the end of {run.log}:\n{end_of(run.log, SHOWN)}"
                left = len(waiting) + len(running)
                hours = duration((time.monotonic() - begun) / (asked - left) * left)
                outcome = "failed" if run.folder in failed else "done"
                print(f"{run.folder}: {outcome}; {left} runs and about {hours} left", flush=True)
                ended(failed)
    finally:
        for _, process in running.values():
            process.terminate()  # each saves its state, as at Ctrl-C
        for _, process in running.values():
            process.join()
        signal.signal(signal.SIGTERM, earlier)
    return failed


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _without_lost(waiting: list[Run], failed: dict[Path, str]) -> list[Run]:
    """Drops the runs that start from a failed one, and notes them as failed too."""
    remaining = []
    for run in waiting:  # a stage precedes the runs that start from it
        lost = [folder for folder in run.needs if folder in failed]
        if lost:
            failed[run.folder] = f"left out: it needs {lost[0]}, which failed"
        else:
            remaining.append(run)
    return remaining


def _started(run: Run, jobs: int) -> BaseProcess:
    run.folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, processors() // jobs)
    # It is no daemon, since its loader starts processes.
    process = get_context("spawn").Process(target=_in_process, args=(run, threads, os.getpid()), daemon=False)
    print(f"{run.folder}: {run.recipe.name}; its progress is in {run.log}", flush=True)
    process.start()
    return process


def _in_process(run: Run, threads: int, parent: int) -> None:
    # Ctrl-C in a terminal reaches the parent alone, which stops each run once: a second signal would end it unsaved.
    os.setsid()
    end_with(parent)
    with run.log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    escape_output()
    torch.set_num_threads(threads)
    try:
        carry_out(run)
    except (ValueError, OSError) as error:
        raise SystemExit(f"diptych: {error}") from None


def carry_out(run: Run) -> None:
    """Trains or resumes a run, measures it unless it is a stage, and counts its computation.

    If an equal run has been finished by another variant, or by an ablation in a folder beside this one, it is copied.
    """
    if (equal := next(_finished_equals(run), None)) is not None:
        print(f"copied from {equal}, which has the same recipe", flush=True)
        shutil.copytree(equal, run.folder, ignore=shutil.ignore_patterns("tasks", COMPUTE), dirs_exist_ok=True)
        shutil.copyfile(equal / COMPUTE, run.folder / COMPUTE)
        return
    begun = (run.folder / "recipe.json").is_file()
    if not begun:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_text(run.request, json.dumps(to_dict(run.recipe), indent=1))
    # A run that has begun has added to its recipe, such as the answers in its data.
    train(stored_recipe(run.folder) if begun else run.recipe, run.folder, resume=begun)
    if run.measured:
        evaluate(run.folder)
    record_compute(run.folder)


def _finished_equals(run: Run) -> Iterator[Path]:
    """Finds finished runs of the same recipe, in this ablation and in those of the folders beside it."""
    own = run.request.resolve()  # a relative folder may have no three parents
    for request in sorted(own.parents[3].glob("*/*/seed-*/asked.json")):
        finished = (request.parent / COMPUTE).is_file() and run.measured <= (request.parent / "eval.json").is_file()
        with suppress(ValueError, OSError):  # somebody else's run, perhaps of a task that is not known here
            if finished and request != own and _asked(request) == run.recipe:
                yield request.parent
