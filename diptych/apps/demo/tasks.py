"""The demonstration of all tasks: a demonstration's model fine-tuned for each of them, and one table of measures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from diptych import catalog
from diptych.apps.demo.pretraining import compare_systems, demo
from diptych.apps.demo.systems import Demonstration, TaskRun
from diptych.apps.report.numbers import columns
from diptych.apps.report.run import report
from diptych.checkpoints import store
from diptych.console import end_of, escape_output
from diptych.data.workers import end_with
from diptych.metrics.intervals import Interval
from diptych.run import train
from diptych.schema import Recipe
from diptych.serialize import to_dict
from diptych.train.state import stored_recipe
from diptych.writing import write_text


@dataclass(frozen=True)
class Row:
    """A measure in percent beside its baseline, which sees no pictures or is not fine-tuned."""

    task: str
    measure: str
    value: float
    interval: Interval
    baseline: str
    """Name of the baseline; empty, and without a value, where it was left out."""
    baseline_value: float | None
    baseline_interval: Interval | None
    chance: float | None
    """The measure of predictions that ignore the pictures."""

    @property
    def apart(self) -> bool:
        """Whether the measure is above its baseline and the intervals do not overlap."""
        return self.baseline_interval is not None and self.interval[0] > self.baseline_interval[1]


def all_tasks(demonstration: Demonstration, blind: bool = True) -> list[Row]:
    """Fine-tunes the demo's model for the five tasks, and prints one table, which it also writes to `tasks/table.json`.

    Finished runs are not trained again, and stopped ones are resumed. `blind` also trains each recipe on blank
    pictures. Raises ValueError where a task's folder holds a run of another recipe.
    """
    if not (demonstration.folder / "eval.json").exists():
        demo(demonstration)
    for run in demonstration.system.tasks:
        with _blind_beside(demonstration, run) if blind and run.blind else nullcontext():
            _run(demonstration, run, blank=False)
    table = rows(demonstration)
    file = demonstration.folder / "tasks" / "table.json"
    write_text(file, json.dumps([vars(row) for row in table], indent=1))
    print(f"\n{as_text(table)}\n\nThe same as JSON: {file}\nReports:")
    for run in demonstration.system.tasks:
        print(f"  {demonstration.task_folder(run) / 'report.html'}")
    compare_systems(demonstration)
    return table


def _run(demonstration: Demonstration, run: TaskRun, blank: bool) -> None:
    """Trains, evaluates and reports a run, unless that has been done."""
    recipe = replace(
        catalog.find_recipe(demonstration.system.task_recipe(run)), init_from=str(demonstration.task_start(run))
    )
    if blank:
        recipe = replace(recipe, data=replace(recipe.data, blank_images=True))
    place = _blind_folder(demonstration, run) if blank else demonstration.task_folder(run)
    begun = _begun(recipe, place)
    if (place / "eval.json").exists():
        print(f"{place} is finished already")
        return
    print(f"\n{recipe.name} in {place}")
    train(begun or recipe, place, resume=begun is not None)
    report(place)


@contextmanager
def _blind_beside(demonstration: Demonstration, run: TaskRun) -> Iterator[None]:
    """Trains the run on blank pictures in another process meanwhile. Both trainings take half of the threads.

    Two small trainings of one thread each get half as much again done as one of two threads (docs/decisions.md 42).
    Raises ValueError with the end of its log if that process fails.
    """
    place, threads = _blind_folder(demonstration, run), torch.get_num_threads()
    if (place / "eval.json").exists():
        yield
        return
    log = place.with_suffix(".log")
    log.parent.mkdir(exist_ok=True)
    half = max(1, threads // 2)
    arguments = demonstration, run, half, log, os.getpid()
    twin = get_context("spawn").Process(target=_run_blind, args=arguments, daemon=False)
    name = demonstration.system.task_recipe(run)
    print(f"\n{name} on blank pictures trains beside it in {place}; its progress is in {log}")
    twin.start()
    torch.set_num_threads(half)
    try:
        yield
    except BaseException:
        twin.terminate()  # it saves its state, as at Ctrl-C
        raise
    finally:
        twin.join()
        torch.set_num_threads(threads)
    if twin.exitcode:
        raise ValueError(f"{name} on blank pictures failed; the end of {log}:\n{end_of(log, 2000)}")


def _run_blind(demonstration: Demonstration, run: TaskRun, threads: int, log: Path, parent: int) -> None:
    """Trains the run on blank pictures in the other process, whose output goes to a log."""
    end_with(parent)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    escape_output()
    torch.set_num_threads(threads)
    try:
        _run(demonstration, run, blank=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"diptych: {error}") from None


def _begun(recipe: Recipe, place: Path) -> Recipe | None:
    """Reads the recipe of a stopped run, with the answers that it found in its data; None for a new run."""
    if not (place / "recipe.json").exists():
        return None
    begun = stored_recipe(place)
    if _without_answers(begun) != _without_answers(recipe):
        raise ValueError(
            f"{place} holds a run of another recipe than {recipe.name}: remove it, or take another --folder"
        )
    return begun


def _without_answers(recipe: Recipe) -> Recipe:
    """Drops from a recipe the answers that a run adds to it, and the path of its start."""
    return replace(recipe, task=catalog.task_class(recipe.task).without_data_settings(recipe.task), init_from=None)


def _blind_folder(demonstration: Demonstration, run: TaskRun) -> Path:
    """Names the folder by the recipe and by the start weights, since other ones make another run."""
    recipe = to_dict(replace(catalog.find_recipe(demonstration.system.task_recipe(run)), init_from=None))
    named = json.dumps(recipe, sort_keys=True).encode() + _weights_of(demonstration.task_start(run))
    return demonstration.folder / "blind" / f"{run.name}-{hashlib.sha256(named).hexdigest()[:12]}"


def _weights_of(run: Path) -> bytes:
    return (store.load_from(run).folder / "weights.safetensors").read_bytes()


def rows(demonstration: Demonstration) -> list[Row]:
    """Lists the measures of the runs that have been evaluated."""
    return [row for run in demonstration.system.tasks for row in _rows(demonstration, run)]


def _rows(demonstration: Demonstration, run: TaskRun) -> Iterator[Row]:
    measures = _eval(demonstration.task_folder(run))
    if measures is None:
        return
    if run.name == "retrieval":
        before = _eval(demonstration.folder)
        assert before is not None
        prefix = "" if "rerank_gain.recall@1" in measures else "contrastive."  # dual encoders, before and after
        for direction in ("image_to_text", "text_to_image"):
            name = f"{direction}.recall@1"
            yield _row("retrieval", name, measures, "before", before, f"{prefix}{name}", measures[f"chance.{name}"])
    elif run.name == "grounding":
        for name in ("largest_proposal", "central_proposal"):
            chance = measures["references.any_proposal"]
            yield _row("grounding", "accuracy", measures, name, measures, f"references.{name}", chance)
    elif run.blind:
        blind = _eval(_blind_folder(demonstration, run))
        for measure in ("accuracy", "consistency") if run.name == "nlvr2" else ("accuracy",):
            chance = measures["references.commonest"] if measure == "accuracy" else None
            yield _row(run.name, measure, measures, "blind", blind, measure, chance)


def _row(
    task: str, measure: str, measures: Mapping[str, Any], name: str, baseline: Mapping[str, Any] | None,
    baseline_measure: str, chance: float | None,
) -> Row:  # fmt: skip
    value, interval = measures[measure], Interval(*measures[f"{measure}.interval"])
    if baseline is None:
        return Row(task, measure, value, interval, "", None, None, chance)
    baseline_interval = Interval(*baseline[f"{baseline_measure}.interval"])
    return Row(task, measure, value, interval, name, baseline[baseline_measure], baseline_interval, chance)


def _eval(folder: Path) -> dict[str, Any] | None:
    file = folder / "eval.json"
    return json.loads(file.read_text()) if file.exists() else None


def as_text(rows: list[Row]) -> str:
    """Formats the measures as a table, in percent, with 95 % intervals."""
    head = ("task", "measure", "value", "", "beside", "", "", "difference", "no look")
    body = [
        (
            row.task, row.measure, f"{row.value:.1f}", str(row.interval), *_beside(row),
            "" if row.chance is None else f"{row.chance:.1f}",
        )
        for row in rows
    ]  # fmt: skip
    return "\n".join(line.rstrip() for line in columns([head, *body]))


def _beside(row: Row) -> tuple[str, str, str, str]:
    if row.baseline_value is None or row.baseline_interval is None:
        return "", "", "", ""
    difference = f"{row.value - row.baseline_value:+.1f}" + ("" if row.apart else " overlap")
    return row.baseline, f"{row.baseline_value:.1f}", str(row.baseline_interval), difference
