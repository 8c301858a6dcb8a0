"""The demonstrations: a model from nothing on made pictures, and the five tasks that it can then learn."""

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

from diptych import catalog, pipeline
from diptych.checkpoints import store
from diptych.metrics.intervals import Interval
from diptych.schema import Recipe, VqaClosedSetConfig, VqaDecoderConfig
from diptych.serialize import to_dict
from diptych.train.state import stored_recipe

PICTURES = 200
"""Unseen scenes that are saved as files, to search in."""
QUERIES = 4
"""Captions of the saved pictures that are suggested for a search: the first ones, not the best found."""

# --------------------------------------------------------------------------- pre-training


def demo(folder: Path) -> Path:
    """Made pictures, a model trained on them from nothing, its measures and its report. A stopped one goes on."""
    recipe, begun = catalog.find_recipe("albef_tiny"), (folder / "recipe.json").exists()
    if begun:
        recipe = stored_recipe(folder)
        print(f"{folder} holds a run already: going on with it")
    pipeline.train(recipe, folder, resume=begun)
    evaluated = pipeline.measure(folder)
    page = pipeline.write(evaluated)
    pictures = _save_pictures(evaluated, folder / "pictures")
    print(summary(evaluated.to_json()))
    print(f"\nReport:    {page}\nPictures:  {pictures} (unseen scenes)\n\nTry next:")
    for query in evaluated.split.captions[:QUERIES]:
        print(f'  diptych search {folder} "{query}" --images {pictures}')
    print("  diptych demo --all-tasks")
    print("  diptych train albef_tiny data.source=folder data.path=YOUR_PHOTOS run.batch_size=16")
    return page


def _save_pictures(evaluated: pipeline.Evaluated, folder: Path) -> Path:
    """The first test pictures as files, to search in."""
    folder.mkdir(exist_ok=True)
    pictures = evaluated.split.pictures
    for number in range(min(PICTURES, len(pictures))):
        pictures[number].save(folder / f"{number:04d}.png")
    return folder


def summary(found: Mapping[str, Any]) -> str:
    """The measures of retrieval as a few lines of text."""
    lines = [f"\nRetrieval among {found['images']} unseen pictures and {found['texts']} captions, in %"]
    reranked = "rerank_gain.recall@1" in found
    for direction in ("image_to_text", "text_to_image"):
        recalls = "  ".join(f"R@{k} {found[f'{direction}.recall@{k}']:5.1f}" for k in (1, 5, 10))
        chance = f"chance R@10 {found[f'chance.{direction}.recall@10']:.1f}"
        first = f"R@1 without re-ranking {found[f'contrastive.{direction}.recall@1']:.1f}; " * reranked
        lines.append(f"  {direction:14} {recalls}   ({first}{chance})")
    if not reranked:
        return "\n".join([*lines, "  by similarity alone: nothing was re-ranked"])
    low, high = found["rerank_gain.interval"]
    gain = found["rerank_gain.recall@1"]
    verdict = "above the noise" if low > 0 else "below 0" if high < 0 else "inside the noise"
    lines.append(f"  re-ranking changes R@1 by {gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}: {verdict}")
    return "\n".join(lines)


# --------------------------------------------------------------------------- the five tasks


@dataclass(frozen=True)
class Stage:
    """One run of the demonstration of all tasks."""

    name: str
    """Its folder below `tasks`."""
    recipe: str
    start: str = ""
    """The stage that it starts from; empty: the pre-trained model."""
    blind: bool = False
    """Whether the same recipe is trained on blank pictures too."""


STAGES = (
    Stage("retrieval", "albef_tiny_retrieval"),
    Stage("grounding", "albef_tiny_grounding"),
    Stage("entailment", "albef_tiny_entailment", blind=True),
    Stage("vqa", "albef_tiny_vqa", blind=True),
    Stage("vqa_closed", "albef_tiny_vqa_closed", blind=True),
    Stage("assignment", "albef_tiny_assignment", start="entailment"),
    Stage("nlvr2", "albef_tiny_nlvr2", start="assignment", blind=True),
)


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


def all_tasks(folder: Path, blind: bool = True) -> list[Row]:
    """The five tasks fine-tuned from the demo's model, and one table, which is also `tasks/table.json`.

    Runs that are there already are not trained again, stopped ones go on. `blind` trains each recipe on blank pictures
    too. Raises ValueError where a stage's folder holds a run of another recipe.
    """
    if not (folder / "eval.json").exists():
        demo(folder)
    for stage in STAGES:
        with _blind_beside(folder, stage) if blind and stage.blind else nullcontext():
            _run(folder, stage, blank=False)
    found = rows(folder)
    table = folder / "tasks" / "table.json"
    table.write_text(json.dumps([vars(row) for row in found], indent=1))
    print(f"\n{as_table(found)}\n\nThe same as JSON: {table}\nReports:")
    for stage in STAGES:
        print(f"  {folder / 'tasks' / stage.name / 'report.html'}")
    return found


def _run(folder: Path, stage: Stage, blank: bool) -> None:
    """Trains, judges and reports a stage, as far as that has not been done."""
    recipe = replace(catalog.find_recipe(stage.recipe), init_from=str(_start(folder, stage)))
    if blank:
        recipe = replace(recipe, data=replace(recipe.data, blank_images=True))
    place = _blind_folder(folder, stage) if blank else folder / "tasks" / stage.name
    begun = _begun(recipe, place)
    if (place / "eval.json").exists():
        print(f"{place} is there already")
        return
    print(f"\n{stage.recipe} in {place}")
    pipeline.train(begun or recipe, place, resume=begun is not None)
    pipeline.report(place)


@contextmanager
def _blind_beside(folder: Path, stage: Stage) -> Iterator[None]:
    """Trains the stage on blank pictures in a process of its own meanwhile, each with half of the threads.

    Two small trainings of one thread each do half as much again as one of two threads (docs/decisions.md 42).
    Raises ValueError with the end of its log if that process fails.
    """
    place, threads = _blind_folder(folder, stage), torch.get_num_threads()
    if (place / "eval.json").exists():
        yield
        return
    log = place.with_suffix(".log")
    log.parent.mkdir(exist_ok=True)
    half = max(1, threads // 2)
    twin = get_context("spawn").Process(target=_run_blind, args=(folder, stage, half, log), daemon=False)
    print(f"\n{stage.recipe} on blank pictures in {place}, beside it; its progress: {log}")
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
        raise ValueError(f"{stage.recipe} on blank pictures failed; the end of {log}:\n{log.read_text()[-2000:]}")


def _run_blind(folder: Path, stage: Stage, threads: int, log: Path) -> None:
    """What the other process does."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    try:
        _run(folder, stage, blank=True)
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
    if isinstance(recipe.task, VqaClosedSetConfig | VqaDecoderConfig):
        recipe = replace(recipe, task=replace(recipe.task, answers=()))
    return replace(recipe, init_from=None)


def _start(folder: Path, stage: Stage) -> Path:
    return folder / "tasks" / stage.start if stage.start else folder


def _blind_folder(folder: Path, stage: Stage) -> Path:
    """Named by the recipe and the weights that it starts from: another of either is another run."""
    recipe = to_dict(replace(catalog.find_recipe(stage.recipe), init_from=None))
    named = json.dumps(recipe, sort_keys=True).encode() + _weights_of(_start(folder, stage))
    return folder / "blind" / f"{stage.name}-{hashlib.sha256(named).hexdigest()[:12]}"


def _weights_of(run: Path) -> bytes:
    return (store.find(run) / "weights.safetensors").read_bytes()


def rows(folder: Path) -> list[Row]:
    """The table of the stages that have been judged."""
    return [row for stage in STAGES for row in _rows(folder, stage)]


def _rows(folder: Path, stage: Stage) -> Iterator[Row]:
    found = _eval(folder / "tasks" / stage.name)
    if found is None:
        return
    if stage.name == "retrieval":
        before = _eval(folder)
        assert before is not None
        for way in ("image_to_text", "text_to_image"):
            name = f"{way}.recall@1"
            yield _row("retrieval", name, found, "before", before, name, found[f"chance.{name}"])
    elif stage.name == "grounding":
        for name in ("largest_proposal", "central_proposal"):
            chance = found["references.any_proposal"]
            yield _row("grounding", "accuracy", found, name, found, f"references.{name}", chance)
    elif stage.blind:
        blind = _eval(_blind_folder(folder, stage))
        measures = ("accuracy", "consistency") if stage.name == "nlvr2" else ("accuracy",)
        for measure in measures:
            chance = found["references.commonest"] if measure == "accuracy" else None
            yield _row(stage.name, measure, found, "blind", blind, measure, chance)


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
