"""The five tasks, learnt from a demonstration's model, and one table of what they reached."""

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
from diptych.apps.report.of_run import report
from diptych.checkpoints import store
from diptych.metrics.intervals import Interval
from diptych.run import train
from diptych.schema import Recipe
from diptych.serialize import to_dict
from diptych.train.state import stored_recipe


@dataclass(frozen=True)
class Row:
    """A measure beside what can be had without looking, or without fine-tuning. In percent."""

    task: str
    measure: str
    value: float
    interval: Interval
    baseline: str
    """What stands beside it; empty where that was left out, and then without a value."""
    baseline_value: float | None
    baseline_interval: Interval | None
    chance: float | None
    """Of whoever does not look at the pictures."""

    @property
    def apart(self) -> bool:
        """Whether the intervals do not overlap, the measure above its baseline."""
        return self.baseline_interval is not None and self.interval[0] > self.baseline_interval[1]


def all_tasks(shown: Demonstration, blind: bool = True) -> list[Row]:
    """The five tasks fine-tuned from the demo's model, and one table, which is also `tasks/table.json`.

    Runs that are there already are not trained again, stopped ones go on. `blind` trains each recipe on blank pictures
    too. Raises ValueError where a task's folder holds a run of another recipe.
    """
    if not (shown.folder / "eval.json").exists():
        demo(shown)
    for run in shown.system.tasks:
        with _blind_beside(shown, run) if blind and run.blind else nullcontext():
            _run(shown, run, blank=False)
    found = rows(shown)
    table = shown.folder / "tasks" / "table.json"
    table.write_text(json.dumps([vars(row) for row in found], indent=1))
    print(f"\n{as_table(found)}\n\nThe same as JSON: {table}\nReports:")
    for run in shown.system.tasks:
        print(f"  {shown.task_folder(run) / 'report.html'}")
    compare_systems(shown)
    return found


def _run(shown: Demonstration, run: TaskRun, blank: bool) -> None:
    """Trains, judges and reports a run, as far as that has not been done."""
    recipe = replace(catalog.find_recipe(shown.system.task_recipe(run)), init_from=str(shown.task_start(run)))
    if blank:
        recipe = replace(recipe, data=replace(recipe.data, blank_images=True))
    place = _blind_folder(shown, run) if blank else shown.task_folder(run)
    begun = _begun(recipe, place)
    if (place / "eval.json").exists():
        print(f"{place} is there already")
        return
    print(f"\n{recipe.name} in {place}")
    train(begun or recipe, place, resume=begun is not None)
    report(place)


@contextmanager
def _blind_beside(shown: Demonstration, run: TaskRun) -> Iterator[None]:
    """Trains the run on blank pictures in a process of its own meanwhile, each with half of the threads.

    Two small trainings of one thread each do half as much again as one of two threads (docs/decisions.md 42).
    Raises ValueError with the end of its log if that process fails.
    """
    place, threads = _blind_folder(shown, run), torch.get_num_threads()
    if (place / "eval.json").exists():
        yield
        return
    log = place.with_suffix(".log")
    log.parent.mkdir(exist_ok=True)
    half = max(1, threads // 2)
    twin = get_context("spawn").Process(target=_run_blind, args=(shown, run, half, log), daemon=False)
    name = shown.system.task_recipe(run)
    print(f"\n{name} on blank pictures in {place}, beside it; its progress: {log}")
    twin.start()
    torch.set_num_threads(half)
    try:
        yield
    except BaseException:
        twin.terminate()  # it saves where it is, as at Ctrl-C
        raise
    finally:
        twin.join()
        torch.set_num_threads(threads)
    if twin.exitcode:
        raise ValueError(f"{name} on blank pictures failed; the end of {log}:\n{log.read_text()[-2000:]}")


def _run_blind(shown: Demonstration, run: TaskRun, threads: int, log: Path) -> None:
    """What the other process does."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    try:
        _run(shown, run, blank=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"diptych: {error}") from None


def _begun(recipe: Recipe, place: Path) -> Recipe | None:
    """The recipe of a stopped run as it wrote it down: with the answers that it found in its data."""
    if not (place / "recipe.json").exists():
        return None
    begun = stored_recipe(place)
    if _without_answers(begun) != _without_answers(recipe):
        raise ValueError(
            f"{place} holds a run of another recipe than {recipe.name}: remove it, or take another --folder"
        )
    return begun


def _without_answers(recipe: Recipe) -> Recipe:
    """What a run adds to its recipe left out, and where the folder stands."""
    return replace(recipe, task=catalog.task_class(recipe.task).unfilled(recipe.task), init_from=None)


def _blind_folder(shown: Demonstration, run: TaskRun) -> Path:
    """Named by the recipe and the weights that it starts from: another of either is another run."""
    recipe = to_dict(replace(catalog.find_recipe(shown.system.task_recipe(run)), init_from=None))
    named = json.dumps(recipe, sort_keys=True).encode() + _weights_of(shown.task_start(run))
    return shown.folder / "blind" / f"{run.name}-{hashlib.sha256(named).hexdigest()[:12]}"


def _weights_of(run: Path) -> bytes:
    return (store.find(run) / "weights.safetensors").read_bytes()


def rows(shown: Demonstration) -> list[Row]:
    """The table of the runs that have been judged."""
    return [row for run in shown.system.tasks for row in _rows(shown, run)]


def _rows(shown: Demonstration, run: TaskRun) -> Iterator[Row]:
    found = _eval(shown.task_folder(run))
    if found is None:
        return
    if run.name == "retrieval":
        before = _eval(shown.folder)
        assert before is not None
        alike = "" if "rerank_gain.recall@1" in found else "contrastive."  # a dual encoder beside a dual encoder
        for way in ("image_to_text", "text_to_image"):
            name = f"{way}.recall@1"
            yield _row("retrieval", name, found, "before", before, f"{alike}{name}", found[f"chance.{name}"])
    elif run.name == "grounding":
        for name in ("largest_proposal", "central_proposal"):
            chance = found["references.any_proposal"]
            yield _row("grounding", "accuracy", found, name, found, f"references.{name}", chance)
    elif run.blind:
        blind = _eval(_blind_folder(shown, run))
        measures = ("accuracy", "consistency") if run.name == "nlvr2" else ("accuracy",)
        for measure in measures:
            chance = found["references.commonest"] if measure == "accuracy" else None
            yield _row(run.name, measure, found, "blind", blind, measure, chance)


def _row(
    task: str, measure: str, found: Mapping[str, Any], name: str, baseline: Mapping[str, Any] | None, of: str,
    chance: float | None,
) -> Row:  # fmt: skip
    own = task, measure, found[measure], Interval(*found[f"{measure}.interval"])
    if baseline is None:
        return Row(*own, "", None, None, chance)
    return Row(*own, name, baseline[of], Interval(*baseline[f"{of}.interval"]), chance)


def _eval(folder: Path) -> dict[str, Any] | None:
    file = folder / "eval.json"
    return json.loads(file.read_text()) if file.exists() else None


def as_table(found: list[Row]) -> str:
    """Rows under headings, in percent, with 95 % intervals."""
    head = ("task", "measure", "value", "", "beside", "", "", "difference", "no look")
    body = [
        (
            row.task, row.measure, f"{row.value:.1f}", str(row.interval), *_beside(row),
            "" if row.chance is None else f"{row.chance:.1f}",
        )
        for row in found
    ]  # fmt: skip
    widths = [max(len(line[place]) for line in (head, *body)) for place in range(len(head))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in (head, *body)]
    return "\n".join(line.rstrip() for line in lines)


def _beside(row: Row) -> tuple[str, str, str, str]:
    if row.baseline_value is None or row.baseline_interval is None:
        return "", "", "", ""
    difference = f"{row.value - row.baseline_value:+.1f}" + ("" if row.apart else " overlap")
    return row.baseline, f"{row.baseline_value:.1f}", str(row.baseline_interval), difference
