"""The runs of an ablation: which there are, and training them side by side, each in a process of its own.

FOLDER/PART/seed-N           a run's folder, with two files more:
           asked.json        the recipe as it was asked for, by which the run is known again
           compute.json      its last file: operations and seconds of its training
FOLDER/PART/seed-N.log       what it said
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
from diptych.recipes.override import override
from diptych.run import evaluate, train
from diptych.schema import Recipe
from diptych.serialize import to_dict
from diptych.train.state import stored_recipe

SHOWN = 2_000
"""Characters of a failed run's log that are shown, from its end."""


@dataclass(frozen=True)
class Run:
    """One training for one seed."""

    part: Part
    seed: int
    recipe: Recipe
    folder: Path
    needs: tuple[Path, ...]
    """Folders of the runs that it begins with."""
    measured: bool
    """Whether it is a variant, which is measured on the test split."""

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def done(self) -> bool:
        return (self.folder / COMPUTE).is_file()


def plan(grid: Grid, folder: Path) -> tuple[Run, ...]:
    """Every run of a grid, those before that others begin with. Raises ValueError for what cannot be run."""
    return tuple(_run(grid, part, seed, folder) for seed in grid.seeds for part in _needed(grid))


def place(folder: Path, part: Part, seed: int) -> Path:
    return folder / part.name.replace(" ", "-") / f"seed-{seed}"


def _needed(grid: Grid) -> tuple[Part, ...]:
    """Without stages that no variant begins with."""
    names = {one.name for variant in grid.variants for one in grid.chain(variant)}
    return tuple(part for part in grid.parts if part.name in names)


def _run(grid: Grid, part: Part, seed: int, folder: Path) -> Run:
    before = {stage.name: place(folder, stage, seed) for stage in grid.stages}
    links = {field: str(before[stage]) for field, stage in part.after.items()}
    recipe = override(catalog.find_recipe(part.recipe), {**part.set, **links, "run.seed": seed})
    own = place(folder, part, seed)
    run = Run(part, seed, recipe, own, tuple(map(Path, links.values())), part in grid.variants)
    asked = own / "asked.json"
    if asked.is_file() and json.loads(asked.read_text()) != to_dict(recipe):
        raise ValueError(f"{own} holds a run of another recipe: remove it, or take another --folder")
    return run


# --------------------------------------------------------------------------- side by side


def train_all(runs: tuple[Run, ...], jobs: int) -> dict[Path, str]:
    """Trains what is not done, `jobs` runs at once. Returns why runs failed, by their folders.

    What begins with a failed run is left out; the others go on. Stopped, all save where they are.
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
                    failed[run.folder] = f"the end of {run.log}:\n{run.log.read_text()[-SHOWN:].rstrip()}"
                print(f"{run.folder}: {'failed' if run.folder in failed else 'done'}", flush=True)
    finally:
        for _, process in running.values():
            process.terminate()  # each saves where it is, as at Ctrl-C
        for _, process in running.values():
            process.join()
    return failed


def _without_lost(waiting: list[Run], failed: dict[Path, str]) -> list[Run]:
    """Those whose stages have not failed; notes the others as failed too."""
    left = []
    for run in waiting:  # stages stand before what begins with them
        lost = [folder for folder in run.needs if folder in failed]
        if lost:
            failed[run.folder] = f"left out: it begins with {lost[0]}, which failed"
        else:
            left.append(run)
    return left


def _started(run: Run, jobs: int) -> BaseProcess:
    run.folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # No daemon: the loader has processes of its own.
    process = get_context("spawn").Process(target=_in_process, args=(run, threads), daemon=False)
    print(f"{run.folder}: {run.recipe.name}, its progress: {run.log}", flush=True)
    process.start()
    return process


def _in_process(run: Run, threads: int) -> None:
    with run.log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    try:
        carry_out(run)
    except (ValueError, OSError) as error:
        raise SystemExit(f"diptych: {error}") from None


def carry_out(run: Run) -> None:
    """Trains a run or goes on with it, measures it if it is a variant, and counts what it took."""
    begun = (run.folder / "recipe.json").is_file()
    if not begun:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "asked.json").write_text(json.dumps(to_dict(run.recipe), indent=1))
    # A run that has begun wrote down what it found in its data, such as answers.
    train(stored_recipe(run.folder) if begun else run.recipe, run.folder, resume=begun)
    if run.measured:
        evaluate(run.folder)
    record_compute(run.folder)
