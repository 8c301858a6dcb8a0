"""The computation of a finished training, counted once and kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych import catalog
from diptych.apps.report.stages import training_rate
from diptych.checkpoints import store
from diptych.data.loader import PairLoader
from diptych.logged import COMPUTE, read_metrics
from diptych.run.evaluation import open_task
from diptych.run.splits import open_split
from diptych.train.flops import counted
from diptych.train.freeze import freeze
from diptych.train.loop import forward_backward
from diptych.train.parallel import ParallelTask
from diptych.types import Progress
from diptych.writing import write_text

COUNTED = 8
"""Number of steps, evenly spread over a run, whose operations are counted. They differ, since a step's computation
depends on its number (`fuse_start`) and on the lengths of its texts."""


def record_compute(folder: Path) -> Path:
    """Counts the computation of a finished run and writes it to `compute.json` in its folder. Returns that file."""
    return write_text(folder / COMPUTE, json.dumps(compute(folder), indent=1))


def compute(folder: Path) -> Mapping[str, Any]:
    """Counts the steps, records and floating-point operations of a run, and its seconds without validations."""
    newest, _ = store.newest_whole(folder / "checkpoints")
    assert newest is not None, "the run has ended"
    state = newest.state["run"]
    rate = training_rate(folder)
    lines = read_metrics(folder / "metrics.jsonl")
    seconds = state["pairs"] / rate if rate else lines[-1]["seconds"] if lines else state["seconds"]
    return {
        "steps": state["step"],
        "records": state["pairs"],
        "flops": step_flops(folder, state["step"]) * state["step"],
        "seconds": seconds,
    }


def step_flops(folder: Path, steps: int) -> float:
    """Counts the floating-point operations of a step, forward and backward, as the mean of `COUNTED` steps.

    Matrix products, convolutions and attention count; additions and normalisations do not.
    """
    newest, _ = store.newest_whole(folder / "checkpoints")
    opened = open_task(newest.folder if newest else folder)
    recipe, task = opened.recipe, opened.task.train()
    if recipe.freeze:
        freeze(task, recipe.freeze)
    data = replace(recipe.data, workers=0)
    answers = catalog.task_class(recipe.task).closed_set(recipe.task)
    source, size, run = open_split(recipe, "train"), recipe.model.image_size, recipe.run
    pairs = run.batch_size * recipe.optim.accumulate
    loader = PairLoader(
        source, opened.tokenizer, data, size, pairs, run.seed, answers, released=recipe.released,
        claims=recipe.task.needs_claims, phrases=recipe.task.needs_phrases,
    )  # fmt: skip
    total, parallel = 0, ParallelTask(task)
    places = sorted({int(steps * (turn + 0.5) / COUNTED) for turn in range(COUNTED)})
    for step in places:
        batch = next(loader.batches(step)).batch
        progress = Progress(step, step / loader.steps_per_epoch, run.seed)
        flops, _ = counted(lambda batch=batch, at=progress: forward_backward(parallel, batch, at, run))  # type: ignore[misc]
        task.zero_grad(set_to_none=True)
        total += flops
    return total / len(places)
