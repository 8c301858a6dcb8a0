"""The runs of an ablation, which are trained side by side, each in its own process.

FOLDER/PART/seed-N           a run's folder, with two more files:
           asked.json        the recipe as the grid has it, which identifies the run
           compute.json      operations and seconds of its training, written last
FOLDER/PART/seed-N.log       its output
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from diptych import catalog
from diptych.apps.ablate.grid import Grid, Part
from diptych.apps.compare.compute import record_compute
from diptych.apps.report.stages import COMPUTE
from diptych.console import end_of, escape_output
from diptych.data.workers import end_with
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
    """Whether the run is a variant, which is measured on the test split."""

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
    """Lists the runs of a grid, stages before the runs that start from them. Raises ValueError for invalid runs."""
    return tuple(_run(grid, part, seed, folder) for seed in grid.seeds for part in _needed(grid))


def place(folder: Path, part: Part, seed: int) -> Path:
    return folder / part.name.replace(" ", "-") / f"seed-{seed}"


def _needed(grid: Grid) -> tuple[Part, ...]:
    """Lists all parts but the stages that no variant starts from."""
    names = {part.name for variant in grid.variants for part in grid.chain(variant)}
    return tuple(part for part in grid.parts if part.name in names)


def _run(grid: Grid, part: Part, seed: int, folder: Path) -> Run:
    stages = {stage.name: place(folder, stage, seed) for stage in grid.stages}
    links = {field: str(stages[stage]) for field, stage in part.after.items()}
    recipe = override(catalog.find_recipe(part.recipe), {**part.set, **links, "run.seed": seed})
    run = Run(part, seed, recipe, place(folder, part, seed), tuple(map(Path, links.values())), part in grid.variants)
    if run.request.is_file() and from_dict(json.loads(run.request.read_text())) != recipe:
        raise ValueError(f"{run.folder} holds a run of another recipe: remove it, or take another --folder")
    return run


# --------------------------------------------------------------------------- side by side


def train_all(runs: tuple[Run, ...], jobs: int) -> dict[Path, str]:
    """Trains all unfinished runs, `jobs` at once. Returns the reasons of failed runs by their folders.

    Runs that start from a failed one are left out, and the others go on. When this process is stopped, all runs save
    their states.
    """
    failed: dict[Path, str] = {}
    waiting = [run for run in runs if not run.done]
    running: dict[int, tuple[Run, BaseProcess]] = {}
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
                print(f"{run.folder}: {'failed' if run.folder in failed else 'done'}", flush=True)
    finally:
        for _, process in running.values():
            process.terminate()  # each saves its state, as at Ctrl-C
        for _, process in running.values():
            process.join()
    return failed


def _without_lost(waiting: list[Run], failed: dict[Path, str]) -> list[Run]:
    """Drops the runs that start from a failed one, and notes them as failed too."""
    remaining = []
    for run in waiting:  # a stage precedes the runs that start from it
        lost = [folder for folder in run.needs if folder in failed]
        if lost:
            failed[run.folder] = f"left out: it starts from {lost[0]}, which failed"
        else:
            remaining.append(run)
    return remaining


def _started(run: Run, jobs: int) -> BaseProcess:
    run.folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # It is no daemon, since its loader starts processes.
    process = get_context("spawn").Process(target=_in_process, args=(run, threads, os.getpid()), daemon=False)
    print(f"{run.folder}: {run.recipe.name}; its progress is in {run.log}", flush=True)
    process.start()
    return process


def _in_process(run: Run, threads: int, parent: int) -> None:
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
    """Trains or resumes a run, measures it if it is a variant, and counts its computation."""
    begun = (run.folder / "recipe.json").is_file()
    if not begun:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_text(run.request, json.dumps(to_dict(run.recipe), indent=1))
    # A run that has begun has added to its recipe, such as the answers in its data.
    train(stored_recipe(run.folder) if begun else run.recipe, run.folder, resume=begun)
    if run.measured:
        evaluate(run.folder)
    record_compute(run.folder)
