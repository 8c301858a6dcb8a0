"""What a training took, counted once it has ended and kept beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych import catalog
from diptych.apps.report.shell import write_whole
from diptych.apps.report.stages import COMPUTE, training_rate
from diptych.checkpoints import store
from diptych.data.loader import PairLoader
from diptych.logged import read_metrics
from diptych.run.evaluation import open_task
from diptych.run.splits import open_split
from diptych.train.distributed import Shared
from diptych.train.flops import counted
from diptych.train.freeze import freeze
from diptych.train.loop import forward_backward
from diptych.types import Progress

COUNTED = 8
"""Steps, evenly spread over a run, whose operations are counted: what a step computes changes with its number
(`fuse_start`) and with the lengths of its texts."""


def record_compute(folder: Path) -> Path:
    """Counts what a run that has ended took, into its `compute.json`. Returns that file."""
    return write_whole(folder / COMPUTE, json.dumps(compute(folder), indent=1))


def compute(folder: Path) -> Mapping[str, Any]:
    """A run's steps, records, floating-point operations, and seconds in its steps without validations."""
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
    """Floating-point operations of a run's step, forward and backward: the mean of `COUNTED` steps spread over it.

    Products of matrices, convolutions and attention count; what is added or normalised does not.
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
    loader = PairLoader(source, opened.tokenizer, data, size, pairs, run.seed, answers)
    total = 0
    places = sorted({int(steps * (turn + 0.5) / COUNTED) for turn in range(COUNTED)})
    for step in places:
        batch = next(loader.batches(step)).batch
        progress = Progress(step, step / loader.steps_per_epoch, run.seed)
        flops, _ = counted(lambda batch=batch, at=progress: forward_backward(Shared(task), batch, at, run))  # type: ignore[misc]
        task.zero_grad(set_to_none=True)
        total += flops
    return total / len(places)
