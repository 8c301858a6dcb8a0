"""The demonstration of pre-training: a model trained on composed scenes in its stages, its measures and report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diptych import catalog
from diptych.apps import compare
from diptych.apps.compare.compute import record_compute
from diptych.apps.demo.systems import SYSTEMS, Demonstration
from diptych.apps.report import summary
from diptych.apps.report.run import report, write
from diptych.checkpoints import store
from diptych.data.sources.folder import CAPTIONS_FILE
from diptych.logged import COMPUTE
from diptych.run import train
from diptych.run.evaluation import EvaluatedRetrieval, evaluate_as_retrieval
from diptych.schema import Recipe
from diptych.train.state import stored_recipe

PICTURES = "pictures"
"""Name of the folder of saved test pictures in a run's folder."""
SAVED = 200
"""Number of unseen scenes that are saved as files, to search in."""
QUERIES = 4
"""Number of captions that are suggested as queries. They are the first ones, not the best ranked ones."""


def demo(demonstration: Demonstration) -> Path:
    """Trains a model on composed scenes, measures it and writes its report. A stopped demonstration is resumed."""
    folder = demonstration.folder
    for name in demonstration.stages:
        place = demonstration.stage_folder(name)
        _train(linked(demonstration, name), place)
        if not (place / "report.html").exists():
            print(f"Report:  {report(place)}")
    _train(linked(demonstration, demonstration.system.recipe), folder)
    evaluated = evaluate_as_retrieval(folder)
    page = write(evaluated)
    pictures = _save_pictures(evaluated, folder / PICTURES)
    print(summary(evaluated.to_json()))
    print(f"\nReport:    {page}\nPictures:  {pictures} (unseen scenes)")
    compare_systems(demonstration)
    print("\nTry next:", *_suggestions(demonstration, evaluated.split.captions[:QUERIES]), sep="\n  ")
    return page


# --------------------------------------------------------------------------- runs


def linked(demonstration: Demonstration, name: str) -> Recipe:
    """Finds a recipe whose start is the demonstration's run of the stage that it names, or of the last stage."""
    places = {stage: str(demonstration.stage_folder(stage)) for stage in demonstration.stages}

    def link(run: str) -> str:
        return places.get(Path(run).name, run)

    recipe = catalog.find_recipe(name)
    task = catalog.task_class(recipe.task).relinked(recipe.task, link)
    start = demonstration.stages[-1] if places and name == demonstration.system.recipe else recipe.init_from
    return replace(recipe, task=task, init_from=link(start) if start else None)


def _train(recipe: Recipe, place: Path) -> None:
    """Trains a run, or resumes the run in the folder. A finished run stays as it is."""
    begun = (place / "recipe.json").exists()
    if begun:
        recipe = stored_recipe(place)
    if begun and _ended(recipe, place):
        print(f"{place} is trained already")
    else:
        print(f"{place} holds a run already, which is resumed" if begun else f"\n{recipe.name} in {place}")
        train(recipe, place, resume=begun)
    if not (place / COMPUTE).exists():
        record_compute(place)


def _ended(recipe: Recipe, place: Path) -> bool:
    newest, _ = store.newest_whole(place / "checkpoints")
    return newest is not None and newest.state["step"] == recipe.run.steps


# --------------------------------------------------------------------------- output


def _save_pictures(evaluated: EvaluatedRetrieval, folder: Path) -> Path:
    """Saves the first test pictures as files, to search in, with their captions as the source `folder` reads them."""
    folder.mkdir(exist_ok=True)
    split = evaluated.split
    count = min(SAVED, len(split.pictures))
    names = [f"{number:04d}.png" for number in range(count)]
    for number, name in enumerate(names):
        split.pictures[number].save(folder / name)
    pairs = zip(split.captions, split.image_of_text.tolist(), strict=True)
    lines = [json.dumps({"image": names[owner], "caption": caption}) for caption, owner in pairs if owner < count]
    (folder / CAPTIONS_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def _suggestions(demonstration: Demonstration, queries: Sequence[str]) -> list[str]:
    """Lists commands to try next."""
    folder, system = demonstration.folder, demonstration.system
    return [
        *(f'diptych search {folder} "{query}" --images {folder / PICTURES}' for query in queries),
        f"diptych demo --all-tasks --model {system.name}",
        f"diptych train {system.recipe} data.source=folder data.path=YOUR_PHOTOS run.batch_size=16",
    ]


def compare_systems(demonstration: Demonstration) -> None:
    """Compares this demonstration with those of the other systems that have been run."""
    folders = [demonstration.folder if system is demonstration.system else system.folder for system in SYSTEMS.values()]
    runs = [folder for folder in folders if (folder / "eval.json").exists()]
    if len(runs) < 2:
        return
    try:
        comparison = compare.compare(runs)
    except ValueError as error:
        print(f"\nThe two systems cannot be compared: {error}")
        return
    page = compare.write(comparison, demonstration.folder)
    print(f"\n{compare.as_text(comparison)}\n\nThe same as a page: {page}")
